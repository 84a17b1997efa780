"""The text CNN of Zheng et al. 2020, section 3.2, for one caption at a time in plain NumPy, at test time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]

BN_EPSILON = 1e-5


def one_hot(token_ids: Sequence[int], vocabulary_size: int) -> Array:
    """(vocabulary_size, positions): word w is a one in row w - 1; a blank (0) is a column of zeros."""
    columns = np.zeros((vocabulary_size, len(token_ids)))
    for position, token_id in enumerate(token_ids):
        if token_id:
            columns[token_id - 1, position] = 1
    return columns


def convolution(x: Array, weight: Array, *, stride: int = 1, zeros_left: int = 0) -> Array:
    """Cross-correlation of x (in, positions) with weight (out, in, kernel), after `zeros_left` zero columns."""
    padded = np.concatenate([np.zeros((len(x), zeros_left)), x], axis=1)
    kernel = weight.shape[2]
    outputs = []
    for start in range(0, padded.shape[1] - kernel + 1, stride):
        window = padded[:, start : start + kernel]
        outputs.append([float((filter_ * window).sum()) for filter_ in weight])
    return np.array(outputs).T


def batch_norm(x: Array, weights: Weights, name: str) -> Array:
    """Normalise channels (the first axis) with the running statistics."""
    column = (slice(None), *[None] * (x.ndim - 1))
    mean, variance = weights[f"{name}.running_mean"][column], weights[f"{name}.running_var"][column]
    scale, shift = weights[f"{name}.weight"][column], weights[f"{name}.bias"][column]
    return scale * (x - mean) / np.sqrt(variance + BN_EPSILON) + shift


def residual_block(x: Array, weights: Weights, name: str, *, stride: int, project: bool) -> Array:
    """Kernels 1, 2, 1 with batch norms; ReLU after the first two and after the sum with the shortcut."""
    y = np.maximum(batch_norm(convolution(x, weights[f"{name}.conv1.weight"]), weights, f"{name}.bn1"), 0)
    y = convolution(y, weights[f"{name}.conv2.weight"], stride=stride, zeros_left=1)
    y = np.maximum(batch_norm(y, weights, f"{name}.bn2"), 0)
    y = batch_norm(convolution(y, weights[f"{name}.conv3.weight"]), weights, f"{name}.bn3")
    if project:
        x = convolution(x, weights[f"{name}.shortcut.0.weight"], stride=stride)
        x = batch_norm(x, weights, f"{name}.shortcut.1")
    return np.maximum(y + x, 0)


def text_embedding(token_ids: Sequence[int], weights: Weights, *, blocks: Sequence[int]) -> Array:
    """f_txt (dim,) of one caption; weights are named as in the encoder's state dict."""
    word_vectors = weights["words.weight"][1:]  # the blank has no row of its own in a one-hot convolution
    x = convolution(one_hot(token_ids, len(word_vectors)), word_vectors.T[:, :, None])
    x = batch_norm(x + weights["word_bias"][:, None], weights, "word_bn")
    index = 0
    for count, stride in zip(blocks, (1, 2, 2, 1), strict=False):
        for position in range(count):
            first = position == 0
            x = residual_block(x, weights, f"blocks.{index}", stride=stride if first else 1, project=first)
            index += 1
    return batch_norm(weights["linear.weight"] @ x.max(axis=1), weights, "bn")
