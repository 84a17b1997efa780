"""Which image is trained on and which is evaluated on, where captions and splits come from different files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dpce_cli.core.data.readers.annotations import ListedImage, read_json, texts_of
from dpce_cli.core.data.readers.reading import Skips
from dpce_cli.core.data.records import SPLITS, CaptionedImage
from dpce_cli.core.errors import DataError


def split_ids(images: Sequence[CaptionedImage]) -> dict[str, list[str]]:
    """The ids of each split, as `read_splits` takes them: `{"train": [...], "val": [...], "test": [...]}`."""
    return {split: [image.image_id for image in images if image.split == split] for split in SPLITS}


def read_splits(path: Path) -> dict[str, str]:
    """The split of each id in a JSON file of `split_ids`.

    Raises:
        DataError: not such a file, or an id in two splits.
    """
    data = read_json(path, frozenset(SPLITS))
    splits: dict[str, str] = {}
    for split in SPLITS:
        for image_id in texts_of(data, split, str(path)):
            if splits.setdefault(image_id, split) != split:
                raise DataError(f"{path}: {image_id!a} is in {splits[image_id]} and in {split}; choose one")
    return splits


def with_splits(listed: Iterable[ListedImage], splits: Mapping[str, str], skips: Skips) -> Iterator[ListedImage]:
    """The images with their splits, given by id; those in none, and ids of no image, are counted in `skips`."""
    unlisted = dict.fromkeys(splits)
    for image in listed:
        unlisted.pop(image.image_id, None)
        if (split := splits.get(image.image_id)) is None:
            skips.add("images in no split", image.image_id)
        else:
            yield dataclasses.replace(image, split=split)
    for image_id in unlisted:
        skips.add("ids in a split that no image has", image_id)
