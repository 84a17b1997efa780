"""Image CNNs that compute what Caffe and MatConvNet compute, for weights trained there, as those of Zheng et al. 2020.

Input: RGB pixels from 0 to 255; the mean that is subtracted belongs to the weights. On photos larger than 224 x 224
pixels, the output has the features of every 7x7 window of the last feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

_WINDOW = 7  # side of the last feature map of a 224 x 224 photo


def move_strides(resnet: models.ResNet) -> None:
    """Move the stride of each stage from the 3x3 convolution to the first 1x1 convolution, as in the first ResNets."""
    for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
        block = stage[0]
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


class CaffeResNet50(models.ResNet):  # type: ignore[misc]  # torchvision is untyped
    """The original ResNet-50: strides on the 1x1 convolutions, first pooling padded at the bottom and right only.

    The bias of the first convolution is included in the batch norm after it.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__(models.resnet.Bottleneck, [3, 4, 6, 3])
        move_strides(self)
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.avgpool = _Windows()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, pixels: Tensor) -> Tensor:
        """Features `(batch, windows, 2048)`; a map that is smaller than a window is one window."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(pixels - self.mean[:, None, None]))))
        x = self.avgpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        features: Tensor = self.fc(x.flatten(2).transpose(1, 2))
        return features


class _Windows(nn.Module):
    """The mean of every window of a map."""

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[2:]
        return F.avg_pool2d(maps, (min(_WINDOW, height), min(_WINDOW, width)), stride=1)


class CaffeVGG(models.VGG):  # type: ignore[misc]  # torchvision is untyped
    """VGG-16 ("D") or VGG-19 ("E"): fc6 and the layers after it see every 7x7 window of the last map."""

    mean: Tensor

    def __init__(self, configuration: str) -> None:
        super().__init__(models.vgg.make_layers(models.vgg.cfgs[configuration]))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, pixels: Tensor) -> Tensor:
        """The classifier's output per window, `(batch, windows, ...)`; photos have 224 x 224 pixels at least."""
        maps = self.features(pixels - self.mean[:, None, None])
        features: Tensor = self.classifier(F.unfold(maps, _WINDOW).transpose(1, 2))
        return features
