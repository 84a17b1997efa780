"""Names of parameters in the authors' released code and in vlfeat's models, and the entries that they become here.

The batch norm after a convolution with filters `<name>f` has `<name>bn_w`, `<name>bn_b` and `<name>bn_m`: scale, shift
and moments. Stage s of the text network has the blocks `fc<s+1>_<i>`. The first block of a later stage is an exception:
it continues the numbers of the stage before, as in `fc2_4a`, and its shortcut is `fc2_4b`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from dpce_cli.core.models.matconvnet.network import Array
from dpce_cli.core.models.matconvnet.weights import Conversion

_RESNET_BLOCKS = (3, 4, 6, 3)
_VGG_CONVOLUTIONS = {"vgg16-caffe": (2, 2, 3, 3, 3), "vgg19-caffe": (2, 2, 4, 4, 4)}


def backbone_of(names: Iterable[str]) -> Literal["resnet50-caffe", "vgg16-caffe", "vgg19-caffe"]:
    """The Caffe CNN that has parameters with these names."""
    known = set(names)
    if "conv1_filter" in known or "conv1_1f" not in known:
        return "resnet50-caffe"
    return "vgg19-caffe" if "conv3_4f" in known else "vgg16-caffe"


def text_blocks(names: Iterable[str]) -> tuple[int, ...]:
    """The number of residual blocks per stage of the text network that has parameters with these names."""
    known = set(names)
    counts: list[int] = []
    while f"{_block(counts, 0)}_1f" in known:
        stage = len(counts) + 2
        identities = sum(re.fullmatch(rf"fc{stage}_\d+_1f", name) is not None for name in known)
        counts.append(identities if stage == 2 else identities + 1)
    return tuple(counts)


def _block(before: list[int] | tuple[int, ...], index: int) -> str:
    """The name of block `index` of a stage; `before` has the numbers of blocks of the stages before it."""
    stage = len(before) + 2
    if index or not before:
        return f"fc{stage}_{index + 1}"
    return f"fc{stage - 1}_{before[-1] + 1}a"


def take_text_encoder(conversion: Conversion, blocks: tuple[int, ...], prefix: str) -> None:
    """Convert the word vectors, the residual blocks and the linear layer; the blank has no filter and becomes zero."""
    rows, dim = conversion.shapes[f"{prefix}words.weight"]
    words = conversion.take("fc2f", (rows - 1, dim))
    conversion.put(f"{prefix}words.weight", np.concatenate([np.zeros((1, dim)), words]))
    conversion.vector(f"{prefix}word_bias", "fc2b")
    _batch_norm(conversion, f"{prefix}word_bn", "fc2")
    position = 0
    for stage, count in enumerate(blocks):
        for index in range(count):
            key, name = f"{prefix}blocks.{position}", _block(blocks[:stage], index)
            for number in (1, 2, 3):
                conversion.filters(f"{key}.conv{number}.weight", f"{name}_{number}f")
                _batch_norm(conversion, f"{key}.bn{number}", f"{name}_{number}")
            if index == 0:
                shortcut = f"{name.removesuffix('a')}b"
                conversion.filters(f"{key}.shortcut.0.weight", f"{shortcut}f")
                _batch_norm(conversion, f"{key}.shortcut.1", shortcut)
            position += 1
    conversion.filters(f"{prefix}linear.weight", "fc5_2f")
    _batch_norm(conversion, f"{prefix}bn", "fc5_2")


def _batch_norm(conversion: Conversion, key: str, name: str) -> None:
    conversion.batch_norm(key, f"{name}bn_w", f"{name}bn_b", f"{name}bn_m")


def take_image_head(conversion: Conversion, prefix: str) -> None:
    """Convert the two linear layers after the image CNN and their batch norms."""
    conversion.filters(f"{prefix}0.weight", "fc1f")
    _batch_norm(conversion, f"{prefix}1", "fc1")
    conversion.filters(f"{prefix}3.weight", "fc1_1f")
    _batch_norm(conversion, f"{prefix}4", "fc1_1")


def with_dense_head(params: Mapping[str, Array], features: int) -> dict[str, Array]:
    """Extend an image head of ResNet-50's size to VGG's size; other parameters stay as they are.

    The released code gives VGG-16 on CUHK-PEDES the head of ResNet-50: 2048 filters that see 2048 of VGG's 4096
    features. MatConvNet takes such filters as two groups: the first half of the filters sees the first half of the
    features, the second half the others. The missing filters become zero, and so do their outputs. The authors' trained
    network was not available; that it has this form is an assumption.
    """
    shapes = {name: tuple(np.shape(params.get(name, ()))) for name in ("fc1f", "fc1bn_w", "fc1_1f")}
    half = features // 2
    if shapes["fc1f"][-2:] != (half, half) or shapes["fc1_1f"][-2:-1] != (half,):
        return dict(params)
    first, second = params["fc1f"].reshape(half, half), params["fc1_1f"].reshape(half, -1)
    dense = np.zeros((features, features), first.dtype)
    dense[:half, : half // 2] = first[:, : half // 2]
    dense[half:, half // 2 : half] = first[:, half // 2 :]
    nothing = np.zeros((half, 1), first.dtype)
    return {
        **params,
        "fc1f": dense,
        "fc1bn_w": np.concatenate([params["fc1bn_w"].reshape(-1, 1), nothing]),
        "fc1bn_b": np.concatenate([params["fc1bn_b"].reshape(-1, 1), nothing]),
        "fc1bn_m": np.concatenate([params["fc1bn_m"].reshape(-1, 2), np.concatenate([nothing, nothing + 1], axis=1)]),
        "fc1_1f": np.concatenate([second, np.zeros_like(second)]),
    }


def take_classifier(conversion: Conversion, prefix: str) -> None:
    """Convert W_share and its bias, if it has one."""
    conversion.filters(f"{prefix}weight", "fcsharef")
    if f"{prefix}bias" in conversion.shapes:
        conversion.vector(f"{prefix}bias", "fcshareb")


def take_backbone(conversion: Conversion, backbone: str, prefix: str) -> None:
    """Convert the image CNN and its mean, and its classification layer if the state dict of `conversion` has one."""
    conversion.put(f"{prefix}mean", conversion.network.mean)
    if backbone == "resnet50-caffe":
        _take_resnet(conversion, prefix)
    else:
        _take_vgg(conversion, _VGG_CONVOLUTIONS[backbone], prefix)


def _take_resnet(conversion: Conversion, prefix: str) -> None:
    """Convert Caffe's ResNet-50; the bias of the first convolution is subtracted from the mean of its batch norm."""

    def layer(convolution: str, norm: str, name: str, bias: Array | float = 0.0) -> None:
        branch = f"bn{name.removeprefix('res')}" if name.startswith("res") else f"bn_{name}"
        conversion.filters(f"{prefix}{convolution}.weight", f"{name}_filter")
        parts = (f"{branch}_mult", f"{branch}_bias", f"{branch}_moments")
        conversion.batch_norm(f"{prefix}{norm}", *parts, bias_before=bias)

    channels = conversion.shapes[f"{prefix}conv1.weight"][0]
    layer("conv1", "bn1", "conv1", conversion.take("conv1_bias", (channels,)))
    for stage, count in enumerate(_RESNET_BLOCKS, start=1):
        for index in range(count):
            block, name = f"layer{stage}.{index}", f"res{stage + 1}{'abcdef'[index]}_branch"
            if index == 0:
                layer(f"{block}.downsample.0", f"{block}.downsample.1", f"{name}1")
            for number, branch in enumerate("abc", start=1):
                layer(f"{block}.conv{number}", f"{block}.bn{number}", f"{name}2{branch}")
    if f"{prefix}fc.weight" in conversion.shapes:
        conversion.filters(f"{prefix}fc.weight", "fc1000_filter")
        conversion.vector(f"{prefix}fc.bias", "fc1000_bias")


def _take_vgg(conversion: Conversion, convolutions: tuple[int, ...], prefix: str) -> None:
    position = 0
    for stage, count in enumerate(convolutions, start=1):
        for index in range(1, count + 1):
            conversion.filters(f"{prefix}features.{position}.weight", f"conv{stage}_{index}f")
            conversion.vector(f"{prefix}features.{position}.bias", f"conv{stage}_{index}b")
            position += 2  # a ReLU follows
        position += 1  # a pooling follows
    for layer, name, side in ((0, "fc6", 7), (3, "fc7", 1), (6, "fc8", 1)):
        if f"{prefix}classifier.{layer}.weight" in conversion.shapes:
            conversion.filters(f"{prefix}classifier.{layer}.weight", f"{name}f", side=side)
            conversion.vector(f"{prefix}classifier.{layer}.bias", f"{name}b")
