"""The splits of Karpathy and Li 2015, which most publications on image-text retrieval use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dpce_cli.core.data.readers.annotations import ListedImage, read_json, value_of
from dpce_cli.core.data.readers.reading import Skips, only_texts
from dpce_cli.core.errors import DataError

_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_KEYS = frozenset({"dataset", "images", "filepath", "filename", "cocoid", "split", "sentences", "raw"})


def karpathy_offer(dataset: str) -> str:
    """Where `dataset_<dataset>.json` is to be had."""
    return (
        f"dataset_{dataset}.json is in caption_datasets.zip on Karpathy's page 'Deep Visual-Semantic Alignments' "
        "(cs.stanford.edu/people/karpathy/deepimagesent)"
    )


def find_karpathy(root: Path, dataset: str) -> Path | None:
    """`dataset_<dataset>.json` in `root` or in `root / annotations`, if it is there."""
    candidates = (root / folder / f"dataset_{dataset}.json" for folder in ("", "annotations"))
    return next((path for path in candidates if os.path.isfile(path)), None)


def read_karpathy(
    path: Path, root: Path, dataset: str, identify: Callable[[Any, str], tuple[str, str]], skips: Skips
) -> Iterator[ListedImage]:
    """The images of a Karpathy file with their captions; what it calls restval is trained on.

    Args:
        root: the data set's folder.
        dataset: what the file must be of, if it says so.
        identify: the `image_id` and path of an image record, whose place in the file is the second argument.

    Raises:
        DataError: not such a file, or of another data set.
    """
    data = read_json(path, _KEYS, root)
    records = value_of(data, "images", list, str(path))
    if (found := data.get("dataset", dataset)) != dataset:
        raise DataError(f"{path}: holds the splits of {found!a}, not of '{dataset}'; {karpathy_offer(dataset)}")
    for index, record in enumerate(records):
        where = f"{path}: images[{index}]"
        split = value_of(record, "split", str, where)
        if split not in _SPLITS:
            raise DataError(f"{where}: unknown split {split!a}; restore the published file")
        image_id, photo = identify(record, where)
        sentences = value_of(record, "sentences", list, where)
        raw = (sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences)
        yield ListedImage(
            image_id=image_id,
            path=photo,
            split=_SPLITS[split],
            captions=tuple(only_texts(raw, where, skips)),
            where=where,
        )
