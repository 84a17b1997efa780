"""Read a MatConvNet network (parameters, mean colour, number of words) and its dictionary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpce_cli.core.errors import DataError, VocabularyError
from dpce_cli.core.models.matconvnet.mat_files import read_mat

Array = npt.NDArray[Any]

_POSITIONS_PER_POOLED = 4
"""Words per position of the text network's last feature map: two stages have a stride of 2."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A DagNN or SimpleNN network as it was saved by MatConvNet."""

    path: Path
    params: dict[str, Array]
    """Arrays by MatConvNet's names: filters are (height, width, in, out), moments (channels, 2)."""
    mean: npt.NDArray[np.float64]
    """RGB, 0 to 255: the mean over the pixels of the average image."""
    max_words: int | None
    """The most words that the text network reads; None for an image CNN alone."""

    @property
    def is_trained_pair(self) -> bool:
        """Whether the network has a text encoder, too."""
        return "fc2f" in self.params


def read_network(path: Path) -> Network:
    """Read a network that was saved by `DagNN.saveobj`, or one of vlfeat's model zoo.

    A parameter of a SimpleNN is named as by MatConvNet's `DagNN.fromSimpleNN`: the layer's name and `f` or `b`.

    Raises:
        DataError: the file is missing or damaged, or contains no network.
    """
    variables = read_mat(path, ("net", "params", "layers", "meta", "normalization"))
    net = variables.get("net", variables)
    if not isinstance(net, dict) or "layers" not in net:
        found = f"its variables are {', '.join(variables)}" if variables else "it has neither 'net' nor 'layers'"
        raise DataError(
            f"{path}: contains no MatConvNet network ({found}); give a net-epoch-*.mat, or one of vlfeat's "
            "imagenet-resnet-50-dag, imagenet-vgg-verydeep-16 and -19"
        )
    try:
        layers = _as_list(net["layers"])
        if "params" in net:
            params = {param["name"]: param["value"] for param in _as_list(net["params"])}
        else:
            params = {
                f"{layer['name']}{suffix}": value
                for layer in layers
                for suffix, value in zip("fb", layer.get("weights", ()), strict=False)
            }
        pooling = [layer["block"]["poolSize"] for layer in layers if layer["name"] == "fc5_1"]
        owner = net["meta"] if "normalization" in net.get("meta", ()) else net
        image = np.asarray(owner["normalization"]["averageImage"], np.float64)
        mean = image.mean(axis=(0, 1)) if image.ndim == 3 else image.ravel()
        if mean.shape != (3,) or not np.isfinite(mean).all():
            raise ValueError(f"averageImage has the shape {image.shape}, or a value that is not finite")
        return Network(
            path=path,
            params=params,
            mean=mean,
            max_words=_POSITIONS_PER_POOLED * int(np.ravel(pooling[0])[-1]) if pooling else None,
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path}: the network is incomplete or has another form than MatConvNet's "
            f"({type(error).__name__}: {error}); download the file again"
        ) from error


def read_dictionary(path: Path) -> tuple[str, ...]:
    """Read the words of a `*_dictionary.mat`, in the order of the filters of the text network's first layer.

    Raises:
        DataError: the file is missing or damaged.
        VocabularyError: the file has no list of words, or a word is listed twice.
    """
    subset = read_mat(path, ("subset",)).get("subset")
    names = subset.get("names") if isinstance(subset, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise VocabularyError(
            f"{path}: contains no list of words 'subset.names'; give the *_dictionary.mat that the network was trained "
            "with"
        )
    word, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise VocabularyError(f"{path}: the word {word!r} is listed {count} times; download the dictionary again")
    return tuple(names)


def _as_list(value: Any) -> list[dict[str, Any]]:
    """The elements of a struct array; `read_mat` reads an array of one element as a struct."""
    return value if isinstance(value, list) else [value]
