"""Random networks with the parameters that the authors' and vlfeat's have, and MATLAB's two kinds of files for them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from scipy.io import savemat

Params = dict[str, npt.NDArray[np.float32]]

MEAN = (110.5, 104.25, 99.0)


class Draw:
    """Draws parameters as MatConvNet has them, so that activations stay near 1."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.params: Params = {}

    def filters(self, name: str, *shape: int, scale: float = 1.0) -> None:
        values = self.generator.standard_normal(shape, dtype=np.float32)
        self.params[name] = values * np.float32(scale * np.sqrt(2 / np.prod(shape[:3])))

    def bias(self, name: str, channels: int) -> None:
        self.params[name] = self.generator.normal(0, 0.1, (1, channels)).astype(np.float32)

    def norm(self, scale: str, shift: str, moments: str, channels: int) -> None:
        """Every eighth standard deviation is less than what PyTorch adds to a variance of 0."""
        uniform, small = self.generator.uniform, np.arange(channels) % 8 == 7
        deviation = np.where(small, 2e-3, uniform(0.7, 1.4, channels))
        factor = np.where(small, 2e-3, 1) * uniform(0.5, 1.0, channels)
        self.params[scale] = factor.astype(np.float32)[:, None]
        self.params[shift] = self.generator.normal(0, 0.1, (channels, 1)).astype(np.float32)
        mean = self.generator.normal(0, 0.1, channels)
        self.params[moments] = np.stack([mean, deviation], axis=1).astype(np.float32)

    def layer(self, name: str, *shape: int) -> None:
        """A convolution of the authors' without bias, and its batch norm."""
        self.filters(f"{name}f", *shape)
        self.norm(f"{name}bn_w", f"{name}bn_b", f"{name}bn_m", shape[3])


def text_stages(counts: Sequence[int]) -> list[list[str]]:
    """Names of the blocks of stages with so many blocks; (3, 4, 6, 1) gives those of the released code."""
    stages = [[f"fc2_{i}" for i in range(1, counts[0] + 1)]]
    for number, count in enumerate(counts[1:], start=2):
        first = f"fc{number}_{counts[number - 2] + 1}a"
        stages.append([first, *(f"fc{number + 1}_{i}" for i in range(2, count + 1))])
    return stages


def text_params(
    draw: Draw, counts: Sequence[int], *, words: int, dim: int, width: float = 1.0, embedding_dim: int
) -> None:
    draw.filters("fc2f", 1, 1, words, dim, scale=np.sqrt(words / 2))
    draw.bias("fc2b", dim)
    draw.norm("fc2bn_w", "fc2bn_b", "fc2bn_m", dim)
    channels = dim
    sizes = ((128, 64, 256), (512, 128, 512), (1024, 256, 1024), (2048, 512, 2048))
    for names, stage in zip(text_stages(counts), sizes, strict=False):
        first, other, out = (round(size * width) for size in stage)
        for index, name in enumerate(names):
            middle = other if index else first
            draw.layer(f"{name}_1", 1, 1, channels, middle)
            draw.layer(f"{name}_2", 1, 2, middle, middle)
            draw.layer(f"{name}_3", 1, 1, middle, out)
            if index == 0:
                draw.layer(f"{name.removesuffix('a')}b", 1, 1, channels, out)
            channels = out
    draw.layer("fc5_2", 1, 1, channels, embedding_dim)


def resnet_params(draw: Draw, *, classes: int = 0) -> None:
    draw.filters("conv1_filter", 7, 7, 3, 64, scale=1 / 70)
    draw.bias("conv1_bias", 64)
    draw.norm("bn_conv1_mult", "bn_conv1_bias", "bn_conv1_moments", 64)

    def layer(branch: str, *shape: int) -> None:
        draw.filters(f"res{branch}_filter", *shape)
        draw.norm(f"bn{branch}_mult", f"bn{branch}_bias", f"bn{branch}_moments", shape[3])

    channels = 64
    for stage, blocks, middle in ((2, "abc", 64), (3, "abcd", 128), (4, "abcdef", 256), (5, "abc", 512)):
        for block in blocks:
            if block == "a":
                layer(f"{stage}{block}_branch1", 1, 1, channels, 4 * middle)
            layer(f"{stage}{block}_branch2a", 1, 1, channels, middle)
            layer(f"{stage}{block}_branch2b", 3, 3, middle, middle)
            layer(f"{stage}{block}_branch2c", 1, 1, middle, 4 * middle)
            channels = 4 * middle
    if classes:
        draw.filters("fc1000_filter", 1, 1, channels, classes)
        draw.bias("fc1000_bias", classes)


def vgg_params(draw: Draw, convolutions: Sequence[int], *, hidden: int, classes: int) -> None:
    """A VGG whose fc6 and fc7 have `hidden` outputs."""
    channels = 3
    for stage, (count, out) in enumerate(zip(convolutions, (64, 128, 256, 512, 512), strict=True), start=1):
        for index in range(1, count + 1):
            draw.filters(f"conv{stage}_{index}f", 3, 3, channels, out, scale=1 if channels > 3 else 1 / 70)
            draw.bias(f"conv{stage}_{index}b", out)
            channels = out
    for name, shape in (
        ("fc6", (7, 7, 512, hidden)),
        ("fc7", (1, 1, hidden, hidden)),
        ("fc8", (1, 1, hidden, classes)),
    ):
        draw.filters(f"{name}f", *shape)
        draw.bias(f"{name}b", shape[3])


def head_params(draw: Draw, features: int, hidden: int, embedding_dim: int) -> None:
    draw.layer("fc1", 1, 1, features, hidden)
    draw.layer("fc1_1", 1, 1, hidden, embedding_dim)


def dag(params: Mapping[str, Any], *, pooled: int | None = 8, mean: Any = None) -> dict[str, Any]:
    """What `DagNN.saveobj` makes of a network; `pooled` is the width of the text network's last pooling."""
    layers: list[dict[str, Any]] = [
        {"name": "fc1", "type": "dagnn.Conv", "block": {"size": np.ones((1, 4)), "hasBias": np.zeros((1, 1))}}
    ]
    if pooled:
        block: dict[str, Any] = {"method": "max", "poolSize": np.array([[1.0, pooled]]), "opts": [["CuDNN"]]}
        layers.append({"name": "fc5_1", "type": "dagnn.Pooling", "block": block})
    average = np.array(MEAN, np.float32)[:, None] if mean is None else mean
    return {
        "vars": [{"name": "data", "precious": np.zeros((1, 1))}, {"name": "fc1", "precious": np.zeros((1, 1))}],
        "params": [
            {"name": name, "value": value, "learningRate": np.ones((1, 1)), "weightDecay": np.ones((1, 1))}
            for name, value in params.items()
        ],
        "layers": layers,
        "meta": {"normalization": {"averageImage": average}, "classes": {"name": ["a cat", "a dog"]}},
        "conserveMemory": np.ones((1, 1)),
    }


def simple(params: Mapping[str, Any]) -> dict[str, Any]:
    """A SimpleNN: a cell array of layers, each a struct with its own fields."""
    names = [name.removesuffix("f") for name in params if name.endswith("f")]
    layers: list[dict[str, Any]] = []
    for name in names:
        layers.append({"name": name, "type": "conv", "weights": [params[f"{name}f"], params[f"{name}b"]]})
        layers.append({"name": f"relu_{name}", "type": "relu", "leak": np.zeros((1, 1))})
    average = np.broadcast_to(np.array(MEAN, np.float32), (4, 4, 3))
    return {"layers": layers, "meta": {"normalization": {"averageImage": average}}}


def save_v7(path: Path, variables: Mapping[str, Any]) -> Path:
    """Save as MATLAB's version 7 does: lists of dicts with the same keys are struct arrays, other lists cell arrays."""
    savemat(path, {name: _v7(value) for name, value in variables.items()}, do_compression=False)
    return path


def _v7(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _v7(item) for name, item in value.items()}
    if isinstance(value, list):
        is_struct = _is_struct_array(value)
        array = np.empty((1, len(value)), dtype=[(name, object) for name in value[0]] if is_struct else object)
        for index, item in enumerate(value):
            array[0, index] = tuple(_v7(part) for part in item.values()) if is_struct else _v7(item)
        return array
    return _trimmed(value) if isinstance(value, np.ndarray) else value


def _is_struct_array(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, dict) and item.keys() == value[0].keys() for item in value)


def _trimmed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """MATLAB knows no singleton dimensions at the end, after the second."""
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def save_v73(path: Path, variables: Mapping[str, Any]) -> Path:
    """Save as MATLAB's version 7.3 does: HDF5 behind a block of text, dimensions reversed, arrays of references."""
    with h5py.File(path, "w", userblock_size=512) as file:
        references, numbers = file.create_group("#refs#"), itertools.count()

        def cells(values: Sequence[Any]) -> npt.NDArray[Any]:
            column = np.empty((len(values), 1), dtype=h5py.ref_dtype)
            for index, value in enumerate(values):
                name = f"x{next(numbers)}"
                write(references, name, value)
                column[index, 0] = references[name].ref
            return column

        def write(group: h5py.Group, name: str, value: Any) -> None:
            if isinstance(value, dict) or (isinstance(value, list) and _is_struct_array(value) and len(value) > 1):
                node = group.create_group(name)
                node.attrs["MATLAB_class"] = np.bytes_("struct")
                for field in value if isinstance(value, dict) else value[0]:
                    if isinstance(value, dict):
                        write(node, field, value[field])
                    else:
                        node.create_dataset(field, data=cells([item[field] for item in value]), dtype=h5py.ref_dtype)
                return
            if isinstance(value, list):
                group.create_dataset(name, data=cells(value), dtype=h5py.ref_dtype)
            elif isinstance(value, str) and not value:
                group[name] = np.zeros(2, np.uint64)
                group[name].attrs["MATLAB_empty"] = np.uint8(1)
            elif isinstance(value, str):
                group[name] = np.frombuffer(value.encode("utf-16-le"), np.uint16)[:, None]
            else:
                group[name] = _trimmed(value).T
            kind = "cell" if isinstance(value, list) else "char" if isinstance(value, str) else "single"
            group[name].attrs["MATLAB_class"] = np.bytes_(kind)

        for name, value in variables.items():
            write(file, name, value)
    with open(path, "rb+") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM")
    return path
