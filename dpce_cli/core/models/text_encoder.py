"""The text CNN: residual 1-D convolutions over word vectors (Zheng et al. 2020, section 3.2)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.config import ModelConfig

# Per stage: channels (middle, out) of the projection block, those of the identity blocks, and the stride, at width 1.
# This is the authors' "ResNet-50" text network.
_STAGES = (
    ((128, 256), (64, 256), 1),
    ((512, 512), (128, 512), 2),
    ((1024, 1024), (256, 1024), 2),
    ((2048, 2048), (512, 2048), 1),
)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of all 1-D convolutions and linear layers from N(0, sqrt(2 / (k * out_channels))); biases are 0.

    This is the initialisation of the authors' released code.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Linear):
            fan_out = layer.weight.shape[0] * math.prod(layer.weight.shape[2:])
            with torch.no_grad():
                layer.weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()


class ResidualBlock(nn.Module):
    """A bottleneck of 1-D convolutions with kernels 1, 2 and 1; a batch norm follows each.

    The kernel-2 convolution sees a position and the one to its left: its input is padded with one zero, on the left
    only.
    """

    def __init__(self, in_channels: int, middle: int, out_channels: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(middle)
        self.conv2 = nn.Conv1d(middle, middle, 2, stride=stride, bias=False)
        self.bn2 = nn.BatchNorm1d(middle)
        self.conv3 = nn.Conv1d(middle, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm1d(out_channels)
        self.shortcut = (
            nn.Sequential(
                nn.Conv1d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm1d(out_channels),
            )
            if project
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:  # (batch, in, length) -> (batch, out, ceil(length / stride))
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(F.pad(y, (1, 0)))))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class TextEncoder(nn.Module):
    """Encodes token ids as text embeddings before their ReLU (f_txt).

    The paper's first layer, a 1x1 convolution over one-hot words, is computed as an embedding look-up plus a bias. The
    blank position, id 0, is the zero vector before the bias.

    Args:
        vocabulary_size: number of words without the blank.
        word_dim: length of a word vector.
        blocks: residual blocks per stage; (3, 4, 6, 1) is the authors' "ResNet-50" network, (3, 8, 36, 1) the one
            that resembles ResNet-152. Fewer stages give a shallower network.
        width: factor on the number of channels of all residual blocks.
        embedding_dim: length of the embedding.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        word_dim: int,
        blocks: tuple[int, ...],
        width: float,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary_size + 1, word_dim, padding_idx=0)
        self.word_bias = nn.Parameter(torch.zeros(word_dim))
        self.word_bn = nn.BatchNorm1d(word_dim)
        layers: list[nn.Module] = []
        channels = word_dim
        for count, (projection, identity, stride) in zip(blocks, _STAGES, strict=False):
            for index in range(count):
                middle, out = (max(1, round(c * width)) for c in (projection if index == 0 else identity))
                layers.append(ResidualBlock(channels, middle, out, stride if index == 0 else 1, index == 0))
                channels = out
        self.blocks = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, embedding_dim, bias=False)
        self.bn = nn.BatchNorm1d(embedding_dim)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise as the authors' code does; word vectors are drawn from N(0, 1 / sqrt(word_dim))."""
        initialise(self, generator)
        with torch.no_grad():
            self.words.weight.normal_(0.0, 1 / math.sqrt(self.words.embedding_dim), generator=generator)
            self.words.weight[0].zero_()

    def feature_map(self, token_ids: Tensor) -> Tensor:
        """The output of the last residual block, `(batch, channels, positions)`, for ids `(batch, words)`."""
        x = self.words(token_ids) + self.word_bias  # (batch, words, word_dim)
        return cast(Tensor, self.blocks(self.word_bn(x.transpose(1, 2))))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Encode ids `(batch, words)`, 0 is blank, as f_txt `(batch, embedding_dim)`: before ReLU, not normalised."""
        pooled = self.feature_map(token_ids).amax(dim=2)
        return cast(Tensor, self.bn(self.linear(pooled)))


def build_text_encoder(model: ModelConfig, *, vocabulary_size: int, word_dim: int) -> TextEncoder:
    """A text encoder of the configured size; `reset_parameters` initialises it."""
    return TextEncoder(
        vocabulary_size=vocabulary_size,
        word_dim=word_dim,
        blocks=model.text_blocks,
        width=model.text_width,
        embedding_dim=model.embedding_dim,
    )
