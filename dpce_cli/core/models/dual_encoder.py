"""The model that is trained: both encoders and the classifier that they share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.config import Config
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.models.shared_classifier import SharedClassifier
from dpce_cli.core.models.text_encoder import build_text_encoder


class InstanceLosses(NamedTuple):
    """Means over a step's photos and captions."""

    image_loss: Tensor
    text_loss: Tensor
    image_accuracy: Tensor
    """Share of the photos for which no other class has a larger logit."""
    text_accuracy: Tensor

    def of_part(self, image_share: float, text_share: float) -> InstanceLosses:
        """The contribution of a part of a batch to the means over the whole batch.

        Args:
            image_share: the part's share of the batch's photos.
            text_share: the part's share of the batch's captions.
        """
        return InstanceLosses(
            image_share * self.image_loss,
            text_share * self.text_loss,
            image_share * self.image_accuracy,
            text_share * self.text_accuracy,
        )


class DualEncoder(nn.Module):
    """The image encoder, the text encoder and the shared classifier.

    Args:
        config: the image CNN and the sizes of the encoders.
        vocabulary_size: number of words without the blank.
        word_dim: length of a word vector.
        instances: number of classes of the instance loss.
    """

    def __init__(self, config: Config, *, vocabulary_size: int, word_dim: int, instances: int) -> None:
        super().__init__()
        model = config.model
        self.image_encoder = ImageEncoder(
            backbone=config.image.backbone,
            embedding_dim=model.embedding_dim,
            crop=config.image.crop,
            feature_dropout=model.feature_dropout,
            frozen_until=config.image.frozen_until,
            pooling=config.image.pooling,
        )
        self.text_encoder = build_text_encoder(model, vocabulary_size=vocabulary_size, word_dim=word_dim)
        self.shared_classifier = SharedClassifier(
            instances=instances,
            embedding_dim=model.embedding_dim,
            bias=model.classifier_bias,
            scale=model.classifier_scale,
            sample_rate=model.classifier_sample_rate,
        )
        self.activation = nn.ReLU() if model.relu else nn.Identity()
        self.dropout = nn.Dropout(model.dropout)

    def classifier_input(self, embeddings: Tensor) -> Tensor:
        """The input of W_share: f `(batch, dim)` after ReLU and dropout."""
        dropped: Tensor = self.dropout(self.activation(embeddings))
        return dropped

    def instance_losses(
        self, image: Tensor, text: Tensor, image_ids: Tensor, text_ids: Tensor, label_smoothing: float
    ) -> InstanceLosses:
        """The instance loss of both encoders, in one pass over the classes.

        Args:
            image: f_img `(images, dim)` of all processes.
            text: f_txt `(texts, dim)`.
            image_ids: `(images,)`, the class of each image.
            text_ids: `(texts,)`, the class of each caption.
            label_smoothing: as in `SharedClassifier.instance_losses`.
        """
        losses, right = self.shared_classifier.instance_losses(
            torch.cat([self.classifier_input(image), self.classifier_input(text)]),
            torch.cat([image_ids, text_ids]),
            label_smoothing,
        )
        image_loss, text_loss = (part.mean() for part in losses.split([len(image), len(text)]))
        image_accuracy, text_accuracy = (part.float().mean() for part in right.split([len(image), len(text)]))
        return InstanceLosses(image_loss, text_loss, image_accuracy, text_accuracy)

    def ranking_embeddings(self, embeddings: Tensor) -> Tensor:
        """The embeddings of the ranking loss: f `(batch, dim)` after ReLU, L2-normalised (Zheng et al. 2020, 4.2)."""
        return F.normalize(self.activation(embeddings), dim=1)
