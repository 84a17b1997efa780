"""Both encoders with the classifier they share, as they are trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.config import Config
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.models.text_encoder import build_text_encoder


class SharedClassifier(nn.Module):
    """W_share: one softmax weight matrix over all training images for both encoders (Zheng et al. 2020, section 4.1).

    Args:
        scale: 0 gives the paper's plain inner product. Above 0, embeddings and class weights are L2-normalised and
            their cosine is multiplied by `scale`: on small data sets the text loss leaves its plateau, the logarithm
            of the number of instances, many epochs sooner.
    """

    def __init__(self, *, instances: int, embedding_dim: int, bias: bool, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(instances, embedding_dim))
        self.bias = nn.Parameter(torch.zeros(instances)) if bias else None
        self.scale = scale

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weights from 0.1 * N(0, sqrt(2 / instances)), as the authors' code does; for cosines, length 1."""
        std = 1 / math.sqrt(self.weight.shape[1]) if self.scale else 0.1 * math.sqrt(2.0 / len(self.weight))
        with torch.no_grad():
            self.weight.normal_(0.0, std, generator=generator)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits `(batch, instances)` of embeddings `(batch, embedding_dim)`."""
        if self.scale:
            return self.scale * F.linear(F.normalize(embeddings, dim=1), F.normalize(self.weight, dim=1), self.bias)
        return F.linear(embeddings, self.weight, self.bias)


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
        )
        self.activation = nn.ReLU() if model.relu else nn.Identity()
        self.dropout = nn.Dropout(model.dropout)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits `(batch, instances)` of f_img or f_txt `(batch, embedding_dim)`: ReLU -> dropout -> W_share."""
        logits: Tensor = self.shared_classifier(self.dropout(self.activation(embeddings)))
        return logits

    def comparable(self, embeddings: Tensor) -> Tensor:
        """What the ranking loss compares: f `(batch, dim)` after ReLU, L2-normalised (Zheng et al. 2020, 4.2)."""
        return F.normalize(self.activation(embeddings), dim=1)
