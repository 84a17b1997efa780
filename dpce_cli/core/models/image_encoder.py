"""The image CNN and its two-layer embedding head (Zheng et al. 2020, section 3.1)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from dpce_cli.core.data.images import normalize
from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models.backbones import find_backbone, input_side, remove_classifier
from dpce_cli.core.models.caffe import CaffeResNet50, CaffeVGG
from dpce_cli.core.models.text_encoder import initialise


class ImageEncoder(nn.Module):
    """Encodes photos as image embeddings before their ReLU (f_img).

    The head is Linear -> BN -> ReLU -> Linear -> BN on the pooled CNN features, see `remove_classifier`.

    Args:
        backbone: see `find_backbone`.
        embedding_dim: length of the embedding.
        crop: side of the training crops in pixels. A larger photo is encoded in windows: each is as large as the last
            feature map of a crop, and the windows slide over the map of the photo (Zheng et al. 2020, section 5.1, and
            the authors' code).
        feature_dropout: dropout probability of the pooled CNN features; the paper has none.

    Raises:
        ConfigError: there is no such backbone, or it does not take photos of `crop` pixels.
    """

    def __init__(self, *, backbone: str, embedding_dim: int, crop: int = 224, feature_dropout: float = 0.0) -> None:
        super().__init__()
        self.crop = crop
        source = find_backbone(backbone)
        self.backbone = source.build()
        side = input_side(self.backbone)
        if side and side != crop:
            raise ConfigError(f"{backbone} takes photos of {side} pixels only; prepare with --set image.crop={side}")
        self.feature_dim = remove_classifier(self.backbone)
        hidden = min(4096 if isinstance(self.backbone, models.VGG) else 2048, self.feature_dim)
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.head = nn.Sequential(
            nn.Linear(self.feature_dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )
        self.mean, self.std = source.mean, source.std

    def reset_parameters(self, generator: torch.Generator, weights: dict[str, Tensor] | None) -> None:
        """Initialise the head as the authors' code does, and load `weights`, if any, into the CNN."""
        initialise(self.head, generator)
        if weights is not None:
            own = self.backbone.state_dict()
            self.backbone.load_state_dict({key: value for key, value in weights.items() if key in own})

    def pooled_features(self, images: Tensor) -> Tensor:
        """The CNN's pooled features of uint8 RGB images `(batch, 3, height, width)`: `(batch, feature_dim)`.

        Raises:
            ConfigError: the images have more than one window.
        """
        features = self._window_features(images)
        if features.shape[1] > 1:
            raise ConfigError(
                f"a photo of {images.shape[3]} x {images.shape[2]} pixels has {features.shape[1]} windows in this "
                "image CNN and no pooled features to cache; add --no-feature-cache, or prepare with "
                "--set image.crop=224"
            )
        return features[:, 0]

    def _window_features(self, images: Tensor) -> Tensor:
        """Features `(batch, windows, feature_dim)`; a photo that is not larger than a training crop is one window."""
        if isinstance(self.backbone, CaffeResNet50 | CaffeVGG):
            return cast(Tensor, self.backbone(images.to(torch.float32, memory_format=torch.channels_last)))
        pixels = normalize(images, mean=self.mean, std=self.std)
        if max(images.shape[2:]) <= self.crop:
            return cast(Tensor, self.backbone(pixels))[:, None]
        if isinstance(self.backbone, models.VGG):
            side = self.crop // 32
            windows = F.unfold(self.backbone.features(pixels), side).transpose(1, 2)  # (batch, windows, 512 * side**2)
            pooled = self.backbone.avgpool(windows.flatten(0, 1).unflatten(1, (-1, side, side)))
            return cast(Tensor, self.backbone.classifier(pooled.flatten(1)).unflatten(0, (images.shape[0], -1)))
        *layers, pooling, classifier = self.backbone.named_children()
        if (pooling[0], classifier[0]) != ("avgpool", "fc"):  # the layers of a ResNet, one after another
            raise ConfigError(
                f"this image CNN has no windows for photos of {images.shape[3]} x {images.shape[2]} pixels, as ResNets "
                "and VGGs have; prepare with --set image.test_view=crop"
            )
        maps = pixels
        for _, layer in layers:
            maps = layer(maps)
        windows = F.avg_pool2d(maps, -(-self.crop // 32), stride=1)  # a map's side is the photo's / 32, rounded up
        return windows.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images, uint8 `(batch, 3, height, width)`, or their pooled features `(batch, feature_dim)`.

        Returns f_img `(batch, embedding_dim)`: before ReLU, not normalised; the mean over the windows of an image.
        """
        if images.dim() != 4:
            return cast(Tensor, self.head(self.feature_dropout(images.float())))
        features = self._window_features(images)
        embeddings: Tensor = self.head(self.feature_dropout(features.flatten(0, 1)))
        # Not features.shape, which ONNX graphs would hold as numbers, for photos of one size.
        return cast(Tensor, embeddings.unflatten(0, (images.shape[0], -1))).mean(1)
