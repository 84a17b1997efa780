"""The image CNN and its two-layer embedding head (Zheng et al. 2020, section 3.1)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from dpce_cli.core.data.images import normalize
from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models.backbones import find_backbone, input_side, remove_classifier
from dpce_cli.core.models.caffe import CaffeResNet50, CaffeVGG
from dpce_cli.core.models.cutting import cut
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
        frozen_until: name of the last part of the CNN that never learns, see `cut`; empty: the CNN is one part.
        pooling: rows and columns of the cells that a ResNet's last map is averaged in; the paper has one cell.

    Raises:
        ConfigError: there is no such backbone, it does not take photos of `crop` pixels or this pooling, or it cannot
            be cut there.
    """

    def __init__(
        self,
        *,
        backbone: str,
        embedding_dim: int,
        crop: int = 224,
        feature_dropout: float = 0.0,
        frozen_until: str = "",
        pooling: tuple[int, ...] = (1, 1),
    ) -> None:
        super().__init__()
        self.crop = crop
        self.pooling = pooling
        source = find_backbone(backbone)
        self.backbone = source.build()
        side = input_side(self.backbone)
        if side and side != crop:
            raise ConfigError(f"{backbone} takes photos of {side} pixels only; prepare with --set image.crop={side}")
        feature_dim = remove_classifier(self.backbone)
        if pooling != (1, 1):
            if not isinstance(self.backbone, models.ResNet) or isinstance(self.backbone, CaffeResNet50):
                raise ConfigError(
                    f"{backbone} keeps its own pooling; prepare with --set 'image.pooling=[1,1]', or choose a ResNet "
                    "of torchvision"
                )
            self.backbone.avgpool = nn.AdaptiveAvgPool2d(pooling)
        self.feature_dim = feature_dim * math.prod(pooling)
        hidden = min(4096 if isinstance(self.backbone, models.VGG) else 2048, feature_dim)
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.head = nn.Sequential(
            nn.Linear(self.feature_dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )
        self.mean, self.std = source.mean, source.std
        self.frozen_until = frozen_until
        self._parts = cut(self.backbone, frozen_until) if frozen_until else None

    def reset_parameters(self, generator: torch.Generator, weights: dict[str, Tensor] | None) -> None:
        """Initialise the head as the authors' code does, and load `weights`, if any, into the CNN."""
        initialise(self.head, generator)
        if weights is not None:
            own = self.backbone.state_dict()
            self.backbone.load_state_dict({key: value for key, value in weights.items() if key in own})

    def train(self, mode: bool = True) -> ImageEncoder:
        """Set the mode; where the CNN or its lower part is frozen, its batch norms keep their statistics."""
        super().train(mode)
        if self._parts or not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    @property
    def frozen_tensors(self) -> frozenset[str]:
        """Names of the tensors of the CNN's lower part in the CNN's state dict."""
        return self._parts.lower_tensors if self._parts else frozenset()

    def frozen_maps(self, images: Tensor) -> Tensor:
        """What the CNN's lower part gives for uint8 RGB images `(batch, 3, crop, crop)`: `(batch, ...)`.

        Raises:
            ConfigError: it is a vector per image, which `forward` would take for pooled features.
        """
        assert self._parts
        maps = self._parts.run_lower(self._pixels(images))
        if maps.dim() == 2:
            raise ConfigError(
                f"image.frozen_until={self.frozen_until}: this part of the image CNN comes after its last map; choose "
                "an earlier one, or freeze the whole CNN with a multiplier of 0 for the backbone"
            )
        return maps

    def pooled_features(self, images: Tensor) -> Tensor:
        """The CNN's pooled features of uint8 RGB images `(batch, 3, height, width)`, or of their `frozen_maps`.

        Returns:
            `(batch, feature_dim)`.

        Raises:
            ConfigError: the images have more than one window.
        """
        features = self.window_features(images)
        if features.shape[1] > 1:
            height, width = (self.crop, self.crop) if images.is_floating_point() else images.shape[2:]
            raise ConfigError(
                f"a photo of {width} x {height} pixels has {features.shape[1]} windows in this "
                "image CNN and no pooled features to cache; add --no-feature-cache, or prepare with "
                "--set image.crop=224"
            )
        return features[:, 0]

    def _pixels(self, images: Tensor) -> Tensor:
        if isinstance(self.backbone, CaffeResNet50 | CaffeVGG):
            return images.to(torch.float32, memory_format=torch.channels_last)
        return normalize(images, mean=self.mean, std=self.std)

    def window_features(self, images: Tensor) -> Tensor:
        """Features `(batch, windows, feature_dim)`; a photo that is not larger than a training crop is one window.

        Args:
            images: uint8 RGB `(batch, 3, height, width)`, or their `frozen_maps`.
        """
        if self._parts and images.is_floating_point():
            features = self._parts.run_upper(images.float())
            return features if isinstance(self.backbone, CaffeResNet50 | CaffeVGG) else features[:, None]
        pixels = self._pixels(images)
        if isinstance(self.backbone, CaffeResNet50 | CaffeVGG):
            return cast(Tensor, self.backbone(pixels))
        # ONNX cannot pool into cells that overlap, as those of a grid may do; windows are made of cells that it can.
        is_exported_grid = self.pooling != (1, 1) and torch.onnx.is_in_onnx_export()
        if max(images.shape[2:]) <= self.crop and not is_exported_grid:
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
        side = -(-self.crop // 32)  # a map's side is the photo's / 32, rounded up
        windows = _pooled_windows(maps, side, self.pooling)
        return windows.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images, uint8 `(batch, 3, height, width)`, their `pooled_features` or their `frozen_maps`.

        Returns f_img `(batch, embedding_dim)`: before ReLU, not normalised; the mean over the windows of an image.
        """
        if images.dim() == 2:
            return cast(Tensor, self.head(self.feature_dropout(images.float())))
        features = self.window_features(images)
        embeddings: Tensor = self.head(self.feature_dropout(features.flatten(0, 1)))
        # Not features.shape, which ONNX graphs would hold as numbers, for photos of one size.
        return cast(Tensor, embeddings.unflatten(0, (images.shape[0], -1))).mean(1)


def _pooled_windows(maps: Tensor, side: int, pooling: tuple[int, ...]) -> Tensor:
    """Average the cells of every window of `side` by `side`, as `nn.AdaptiveAvgPool2d(pooling)` does of one window.

    Args:
        maps: `(batch, channels, height, width)`.

    Returns:
        `(batch, channels * rows * columns, height - side + 1, width - side + 1)`.
    """
    rows, columns = (
        [(side * cell // count, -(-side * (cell + 1) // count)) for cell in range(count)] for count in pooling
    )
    height, width = (length - side for length in maps.shape[2:])
    cells = [
        F.avg_pool2d(maps[:, :, top : height + bottom, left : width + right], (bottom - top, right - left), stride=1)
        for top, bottom in rows
        for left, right in columns
    ]
    return torch.stack(cells, 2).flatten(1, 2)
