"""The authors' networks as MatConvNet runs them at test time, in plain NumPy, from parameters by MatConvNet's names.

Maps are (height, width, channels) in float64; filters are (height, width, in, out), paddings (top, bottom, left,
right). A batch norm divides by the second column of its moments, which holds sqrt(variance + epsilon).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Filters = npt.NDArray[np.float32]
Params = Mapping[str, Filters]
Padding = tuple[int, int, int, int]
NONE: Padding = (0, 0, 0, 0)
EVEN: Padding = (1, 1, 1, 1)


def conv(
    x: Array,
    filters: Filters,
    bias: Filters | float = 0.0,
    *,
    stride: int = 1,
    pad: Padding = NONE,
) -> Array:
    """vl_nnconv: a cross-correlation; filters over a part of the channels (here without bias) are groups."""
    groups = x.shape[2] // filters.shape[2]
    if groups > 1:
        parts = zip(np.split(x, groups, axis=2), np.split(filters, groups, axis=3), strict=True)
        y: Array = np.concatenate([conv(part, own, stride=stride, pad=pad) for part, own in parts], axis=2)
        return y
    top, bottom, left, right = pad
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    height, width, _, outputs = filters.shape
    rows, columns = (x.shape[0] - height) // stride + 1, (x.shape[1] - width) // stride + 1
    total: Array = np.broadcast_to(np.ravel(bias).astype(np.float64), (rows, columns, outputs)).copy()
    for i in range(height):
        for j in range(width):
            seen = x[i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            total += seen @ filters[i, j].astype(np.float64)
    return total


def bnorm(x: Array, params: Params, scale: str, shift: str, moments: str) -> Array:
    """vl_nnbnorm with given moments."""
    mean, deviation = params[moments].astype(np.float64).T
    y: Array = np.ravel(params[scale]) * (x - mean) / deviation + np.ravel(params[shift])
    return y


def relu(x: Array) -> Array:
    y: Array = np.maximum(x, 0)
    return y


def pool(x: Array, size: tuple[int, int], *, method: str, stride: int, pad: Padding = NONE) -> Array:
    """vl_nnpool: the padding takes no part in a maximum (nor, which is not needed here, in an average)."""
    top, bottom, left, right = pad
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=-np.inf)
    rows, columns = (x.shape[0] - size[0]) // stride + 1, (x.shape[1] - size[1]) // stride + 1
    y = np.empty((rows, columns, x.shape[2]))
    for i in range(rows):
        for j in range(columns):
            window = x[i * stride : i * stride + size[0], j * stride : j * stride + size[1]]
            y[i, j] = window.max((0, 1)) if method == "max" else window.mean((0, 1))
    return y


def text_embedding(params: Params, token_ids: Sequence[int], stages: Sequence[Sequence[str]]) -> Array:
    """Variable fc5_2bn for one caption, 0 = blank.

    Args:
        stages: names of the blocks of each stage, as in `fc2_4a`.
    """

    def layer(x: Array, name: str, *, stride: int = 1, pad: Padding = NONE) -> Array:
        y = conv(x, params[f"{name}f"], stride=stride, pad=pad)
        return bnorm(y, params, f"{name}bn_w", f"{name}bn_b", f"{name}bn_m")

    one_hot = np.zeros((1, len(token_ids), params["fc2f"].shape[2]))
    for position, token_id in enumerate(token_ids):
        if token_id:
            one_hot[0, position, token_id - 1] = 1
    x = conv(one_hot, params["fc2f"], params["fc2b"])
    x = bnorm(x, params, "fc2bn_w", "fc2bn_b", "fc2bn_m")  # no ReLU
    for number, names in enumerate(stages):
        for index, name in enumerate(names):
            stride = 2 if index == 0 and number in (1, 2) else 1
            y = relu(layer(x, f"{name}_1"))
            y = relu(layer(y, f"{name}_2", stride=stride, pad=(0, 0, 1, 0)))
            y = layer(y, f"{name}_3")
            if index == 0:
                shortcut = name[:-1] + "b" if name.endswith("a") else name + "b"
                x = layer(x, shortcut, stride=stride)
            x = relu(x + y)
    x = pool(x, (1, x.shape[1]), method="max", stride=1)
    return layer(x, "fc5_2").ravel()


def resnet50(params: Params, image: Array) -> Array:
    """Variable pool5, (rows, columns, 2048), of an image minus its mean: imagenet-resnet-50-dag."""

    def layer(
        x: Array, name: str, norm: str, *, stride: int = 1, pad: Padding = NONE, bias: Filters | float = 0.0
    ) -> Array:
        y = conv(x, params[f"{name}_filter"], bias, stride=stride, pad=pad)
        return bnorm(y, params, f"{norm}_mult", f"{norm}_bias", f"{norm}_moments")

    x = relu(layer(image, "conv1", "bn_conv1", stride=2, pad=(3, 3, 3, 3), bias=params["conv1_bias"]))
    x = pool(x, (3, 3), method="max", stride=2, pad=(0, 1, 0, 1))
    for stage, blocks in zip("2345", ("abc", "abcd", "abcdef", "abc"), strict=True):
        for block in blocks:
            stride = 2 if block == "a" and stage != "2" else 1
            name = f"{stage}{block}_branch"
            y = relu(layer(x, f"res{name}2a", f"bn{name}2a", stride=stride))
            y = relu(layer(y, f"res{name}2b", f"bn{name}2b", pad=EVEN))
            y = layer(y, f"res{name}2c", f"bn{name}2c")
            if block == "a":
                x = layer(x, f"res{name}1", f"bn{name}1", stride=stride)
            x = relu(x + y)
    return pool(x, (7, 7), method="avg", stride=1)


def vgg(params: Params, image: Array, convolutions: Sequence[int]) -> Array:
    """The output of layer fc7, (rows, columns, 4096), before its ReLU: imagenet-vgg-verydeep-16 and -19."""
    x = image
    for stage, count in enumerate(convolutions, start=1):
        for index in range(1, count + 1):
            x = relu(conv(x, params[f"conv{stage}_{index}f"], params[f"conv{stage}_{index}b"], pad=EVEN))
        x = pool(x, (2, 2), method="max", stride=2)
    x = relu(conv(x, params["fc6f"], params["fc6b"]))
    return conv(x, params["fc7f"], params["fc7b"])


def image_head(params: Params, features: Array) -> Array:
    """Variable fc1_1bn, summed over its positions as the authors' test code does."""
    x = conv(features, params["fc1f"])
    x = relu(bnorm(x, params, "fc1bn_w", "fc1bn_b", "fc1bn_m"))
    x = conv(x, params["fc1_1f"])
    positions = bnorm(x, params, "fc1_1bn_w", "fc1_1bn_b", "fc1_1bn_m")
    total: Array = positions.sum((0, 1))
    return total
