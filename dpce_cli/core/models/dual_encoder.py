"""Both encoders with the classifier they share, as they are trained."""

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
    """Share of the photos of which no other class has a larger logit."""
    text_accuracy: Tensor

    def of_part(self, image_share: float, text_share: float) -> InstanceLosses:
        """What a part of a batch adds to the means over the whole batch, by its shares of photos and captions."""
        return InstanceLosses(
            image_share * self.image_loss,
            text_share * self.text_loss,
            image_share * self.image_accuracy,
            text_share * self.text_accuracy,
        )


class DualEncoder(nn.Module):
    """The image encoder, the text encoder and the shared classifier.

    Args:
        config: sizes and names of the parts.
        vocabulary_size: words without the blank.
        word_dim: length of a word vector.
        instances: training images, the classes of the instance loss.
    """

    def __init__(self, config: Config, *, vocabulary_size: int, word_dim: int, instances: int) -> None:
        super().__init__()
        model = config.model
        self.image_encoder = ImageEncoder(
            backbone=config.image.backbone,
            embedding_dim=model.embedding_dim,
            crop=config.image.crop,
            feature_dropout=model.feature_dropout,
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

    def classifiable(self, embeddings: Tensor) -> Tensor:
        """What W_share is given: f `(batch, dim)` after ReLU and dropout."""
        classifiable: Tensor = self.dropout(self.activation(embeddings))
        return classifiable

    def instance_losses(
        self, image: Tensor, text: Tensor, image_ids: Tensor, text_ids: Tensor, label_smoothing: float
    ) -> InstanceLosses:
        """The instance loss of both encoders, in one pass over the classes.

        Args:
            image: f_img `(images, dim)` of all processes.
            text: f_txt `(texts, dim)`.
            image_ids: `(images,)`, the class of each.
            text_ids: `(texts,)`
            label_smoothing: as in `SharedClassifier.instance_losses`.
        """
        losses, right = self.shared_classifier.instance_losses(
            torch.cat([self.classifiable(image), self.classifiable(text)]),
            torch.cat([image_ids, text_ids]),
            label_smoothing,
        )
        image_loss, text_loss = (part.mean() for part in losses.split([len(image), len(text)]))
        image_accuracy, text_accuracy = (part.float().mean() for part in right.split([len(image), len(text)]))
        return InstanceLosses(image_loss, text_loss, image_accuracy, text_accuracy)

    def ranking_embeddings(self, embeddings: Tensor) -> Tensor:
        """What the ranking loss compares: f `(batch, dim)` after ReLU, L2-normalised (Zheng et al. 2020, 4.2)."""
        return F.normalize(self.activation(embeddings), dim=1)
