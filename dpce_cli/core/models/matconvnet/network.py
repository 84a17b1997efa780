"""What the importer needs of a MatConvNet network: named parameters, the mean image, the text positions."""

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

# Positions of the text network for each one that its last pooling covers: two stages have a stride of 2.
_POSITIONS_PER_POOLED = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A DagNN or SimpleNN network as it was saved."""

    path: Path
    params: dict[str, Array]
    """By MatConvNet's names: filters are (height, width, in, out), moments (channels, 2)."""
    mean: npt.NDArray[np.float64]
    """RGB, 0 to 255: the average image's mean over its pixels."""
    max_words: int | None
    """Positions of the text network; None if there is none."""

    @property
    def is_trained_pair(self) -> bool:
        """Whether the text network is there too."""
        return "fc2f" in self.params


def read_network(path: Path) -> Network:
    """Read a network that `DagNN.saveobj` or vlfeat's model zoo made.

    The parameters of a SimpleNN's layers get the names that MatConvNet's `DagNN.fromSimpleNN` gives them: `f` and `b`
    after the layer's.

    Raises:
        DataError: the file is missing or damaged, or holds no network.
    """
    variables = read_mat(path, ("net", "params", "layers", "meta", "normalization"))
    net = variables.get("net", variables)
    if not isinstance(net, dict) or "layers" not in net:
        found = f"its variables are {', '.join(variables)}" if variables else "it has neither 'net' nor 'layers'"
        raise DataError(
            f"{path}: holds no MatConvNet network ({found}); name a net-epoch-*.mat, or one of vlfeat's "
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
            f"{path}: the network lacks what MatConvNet saves with it, or has it in another form "
            f"({type(error).__name__}: {error}); get the file again"
        ) from error


def read_dictionary(path: Path) -> tuple[str, ...]:
    """The words of a `*_dictionary.mat` in the order of the text network's first filters: `subset.names`.

    Raises:
        DataError: the file is missing or damaged.
        VocabularyError: it holds no such list of different words.
    """
    subset = read_mat(path, ("subset",)).get("subset")
    names = subset.get("names") if isinstance(subset, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise VocabularyError(
            f"{path}: holds no list of words 'subset.names'; name the *_dictionary.mat that the network was trained "
            "with"
        )
    word, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise VocabularyError(f"{path}: the word {word!r} is there {count} times; get the dictionary again")
    return tuple(names)


def _as_list(value: Any) -> list[dict[str, Any]]:
    """A struct array; one of a single element was read as a struct."""
    return value if isinstance(value, list) else [value]
