"""The image CNN and its two-layer embedding head (Zheng et al. 2020, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from dpce_cli.core.data.images import normalize
from dpce_cli.core.errors import CheckpointError, ConfigError
from dpce_cli.core.models.caffe import CaffeResNet50, CaffeVGG, move_strides
from dpce_cli.core.models.text_encoder import initialise

# RGB mean and standard deviation on [0, 1] of every torchvision ImageNet model.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The original (Caffe) ResNet-50 was trained on images minus this mean.
ORIGINAL_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)


def _resnet50_v1() -> models.ResNet:
    """ResNet-50 as first published: each stage has its stride on the first 1x1 convolution, not on the 3x3."""
    resnet = models.resnet50()
    move_strides(resnet)
    return resnet


_BACKBONES: dict[str, tuple[Callable[[], nn.Module], models.WeightsEnum | None, int]] = {
    "resnet18": (models.resnet18, models.ResNet18_Weights.IMAGENET1K_V1, 512),
    "resnet34": (models.resnet34, models.ResNet34_Weights.IMAGENET1K_V1, 512),
    "resnet50": (models.resnet50, models.ResNet50_Weights.IMAGENET1K_V1, 2048),
    "resnet50-v1": (_resnet50_v1, None, 2048),
    "resnet50-caffe": (CaffeResNet50, None, 2048),
    "resnet101": (models.resnet101, models.ResNet101_Weights.IMAGENET1K_V1, 2048),
    "resnet152": (models.resnet152, models.ResNet152_Weights.IMAGENET1K_V1, 2048),
    "vgg16": (models.vgg16, models.VGG16_Weights.IMAGENET1K_V1, 4096),
    "vgg19": (models.vgg19, models.VGG19_Weights.IMAGENET1K_V1, 4096),
    "vgg16-caffe": (partial(CaffeVGG, "D"), None, 4096),
    "vgg19-caffe": (partial(CaffeVGG, "E"), None, 4096),
}
BACKBONES = tuple(_BACKBONES)


def build_backbone(name: str) -> nn.Module:
    """One of `BACKBONES` with its classification layer and without pretrained weights."""
    return _BACKBONES[name][0]()


def load_backbone_weights(name: str, source: str) -> dict[str, Tensor]:
    """Load the state dict of an ImageNet CNN with its classification layer, in float32.

    Args:
        name: one of `BACKBONES`.
        source: "imagenet" for torchvision's published weights (downloaded once), or the path of a state dict with
            torchvision's keys.

    Raises:
        ConfigError: torchvision publishes no weights for `name`, or they cannot be downloaded.
        CheckpointError: the file is missing, cannot be read, or has the weights of another network.
    """
    _, published, _ = _BACKBONES[name]
    if source == "imagenet":
        if published is None:
            raise ConfigError(
                f"{name}: torchvision publishes no weights for this CNN; give a file with --backbone-weights FILE"
            )
        try:
            state = published.get_state_dict(progress=False)
        except OSError as error:
            raise ConfigError(
                f"{name}: the ImageNet weights at {published.url} cannot be downloaded ({error}); "
                "give a file with --backbone-weights FILE, or --backbone-weights none to train from scratch"
            ) from error
    else:
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; --backbone-weights takes a file, 'imagenet' or 'none'")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a file that is not a state dict
            raise CheckpointError(
                f"{path}: cannot be read as a PyTorch state dict ({type(error).__name__}); "
                f"--backbone-weights needs a file saved from torchvision's {name}"
            ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{source}: not a state dict of tensors; expected that of torchvision's {name}")
    with torch.device("meta"):
        expected = build_backbone(name).state_dict()
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    wrong = [key for key, value in expected.items() if key in state and state[key].shape != value.shape]
    missing = expected.keys() - state.keys() - optional
    unknown = state.keys() - expected.keys()
    if odd := sorted(map(str, [*missing, *wrong, *unknown])):
        raise CheckpointError(
            f"{source}: these are not the weights of {name}: {len(missing)} tensors are missing, {len(wrong)} have "
            f"another shape and {len(unknown)} are unknown (first: {odd[0]}); choose the --backbone of these weights"
        )
    return {key: state[key].float() if key in state else torch.tensor(0) for key in expected}


class ImageEncoder(nn.Module):
    """Encodes photos as image embeddings before their ReLU (f_img).

    The head is Linear -> BN -> ReLU -> Linear -> BN on the pooled CNN features. Those of a VGG are the outputs of fc7
    before its ReLU, and the CNN has no dropout, as in the authors' code.

    Args:
        backbone: one of `BACKBONES`.
        embedding_dim: length of the embedding.
        crop: side of the training crops in pixels. A larger photo is encoded in windows: each is as large as the last
            feature map of a crop, and the windows slide over the map of the photo (Zheng et al. 2020, section 5.1, and
            the authors' code).
        feature_dropout: dropout probability of the pooled CNN features; the paper has none.
    """

    def __init__(self, *, backbone: str, embedding_dim: int, crop: int = 224, feature_dropout: float = 0.0) -> None:
        super().__init__()
        self.crop = crop
        self.backbone = build_backbone(backbone)
        _, _, feature_dim = _BACKBONES[backbone]
        if isinstance(self.backbone, models.VGG):
            fc6, relu, _, fc7 = self.backbone.classifier[:4]
            self.backbone.classifier = nn.Sequential(fc6, relu, nn.Identity(), fc7)  # keeps the weights' names
            hidden = 4096
        else:
            self.backbone.fc = nn.Identity()
            hidden = 2048
        hidden = min(hidden, feature_dim)
        self.feature_dim = feature_dim
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.head = nn.Sequential(
            nn.Linear(feature_dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )
        self.mean = ORIGINAL_MEAN if backbone == "resnet50-v1" else IMAGENET_MEAN

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
        pixels = normalize(images, mean=self.mean, std=IMAGENET_STD)
        if max(images.shape[2:]) <= self.crop:
            return cast(Tensor, self.backbone(pixels))[:, None]
        if isinstance(self.backbone, models.VGG):
            side = self.crop // 32
            windows = F.unfold(self.backbone.features(pixels), side).transpose(1, 2)  # (batch, windows, 512 * side**2)
            pooled = self.backbone.avgpool(windows.flatten(0, 1).unflatten(1, (-1, side, side)))
            return cast(Tensor, self.backbone.classifier(pooled.flatten(1)).unflatten(0, (images.shape[0], -1)))
        maps = pixels
        for layer in list(self.backbone.children())[:-2]:  # without the pooling and the classification layer
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
