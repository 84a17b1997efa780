"""Splits (training, validation and test images) from a file of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dpce_cli.core.data.readers.annotations import ListedImage, read_json, texts_of
from dpce_cli.core.data.readers.reading import Skips
from dpce_cli.core.data.records import SPLITS, CaptionedImage
from dpce_cli.core.errors import DataError


def split_ids(images: Sequence[CaptionedImage]) -> dict[str, list[str]]:
    """The ids of each split, in the form that `read_splits` reads: `{"train": [...], "val": [...], "test": [...]}`."""
    return {split: [image.image_id for image in images if image.split == split] for split in SPLITS}


def read_splits(path: Path) -> dict[str, str]:
    """Read the split of each id from a JSON file in the form of `split_ids`.

    Raises:
        DataError: the file has another form, or an id is in two splits.
    """
    data = read_json(path, frozenset(SPLITS))
    splits: dict[str, str] = {}
    for split in SPLITS:
        for image_id in texts_of(data, split, str(path)):
            if splits.setdefault(image_id, split) != split:
                raise DataError(f"{path}: {image_id!a} is in {splits[image_id]} and in {split}; choose one")
    return splits


def with_splits(listed: Iterable[ListedImage], splits: Mapping[str, str], skips: Skips) -> Iterator[ListedImage]:
    """The images with their splits, which are given by id. Images without split and ids without image are skipped."""
    unlisted = dict.fromkeys(splits)
    for image in listed:
        unlisted.pop(image.image_id, None)
        if (split := splits.get(image.image_id)) is None:
            skips.add("images in no split", image.image_id)
        else:
            yield dataclasses.replace(image, split=split)
    for image_id in unlisted:
        skips.add("ids in a split that no image has", image_id)
