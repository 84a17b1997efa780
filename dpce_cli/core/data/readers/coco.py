"""MSCOCO captions of 2014 or 2017, from the official files and Karpathy's (Lin et al. 2014; Chen et al. 2015)."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpce_cli.core.data.readers.annotations import ListedImage, found_images, read_json, value_of
from dpce_cli.core.data.readers.karpathy import find_karpathy, karpathy_offer, read_karpathy
from dpce_cli.core.data.readers.reading import Skips, layout_error, only_texts, scan_files
from dpce_cli.core.data.records import CaptionedImages
from dpce_cli.core.data.splits import read_splits, with_splits
from dpce_cli.core.errors import DataError

_YEARS = ("2014", "2017")
_PARTS = ("train", "val")
_KEYS = frozenset({"images", "annotations", "id", "file_name", "image_id", "caption"})
# COCO_val2014_000000391895.jpg of 2014 is 000000391895.jpg in 2017, there perhaps in the other folder.
_PHOTO = re.compile(r"(?:COCO_[a-z]+2014_)?(\d{12})\.jpg")


def read_coco(root: Path, *, splits: str, seed: int, drawn: int = 5000) -> CaptionedImages:
    """The photos of `train2014` and `val2014`, or of `train2017` and `val2017`, with their captions.

    An image's id is COCO's number, which is the same in both years.

    Args:
        splits: "karpathy" reads `dataset_coco.json`, captions included: 113,287 train (with restval), 5,000 val and
            5,000 test images, in its order, so that folds of the test images are those of other publications. "paper"
            reads the official annotations and draws val and test images (Zheng et al. 2020, section 5.1; their draw
            is not published). Anything else is the path of a splits.json to use on the official annotations.
        seed: decides what "paper" draws.
        drawn: how many images "paper" draws for val, and again for test.

    Raises:
        DataError: another layout, an unreadable or malformed file, too few images to draw from, an image in two
            splits, an unsafe path, or nothing left to read.
    """
    karpathy = find_karpathy(root, "coco") if splits == "karpathy" else None
    if splits == "karpathy" and not karpathy:
        raise _layout_error(root, splits)
    for year in _YEARS:
        folders = [f"{part}{year}" for part in _PARTS]
        annotations = [root / "annotations" / f"captions_{folder}.json" for folder in folders]
        if all(os.path.isdir(root / folder) for folder in folders) and (
            karpathy or all(map(os.path.isfile, annotations))
        ):
            break
    else:
        raise _layout_error(root, splits)
    found = [path for folder in folders for path in scan_files(root, folder)]
    path_of = {match[1]: path for path in found if (match := _PHOTO.fullmatch(path.partition("/")[2]))}
    files = set(found)

    def photo(folder: str, name: str) -> str:
        path, match = f"{folder}/{name}", _PHOTO.fullmatch(name)
        return path if path in files or match is None else path_of.get(match[1], path)

    def identify(record: Any, where: str) -> tuple[str, str]:
        folder, name = value_of(record, "filepath", str, where), value_of(record, "filename", str, where)
        return str(value_of(record, "cocoid", int, where)), photo(folder, name)

    skips = Skips()
    if karpathy:
        listed = read_karpathy(karpathy, root, "coco", identify, skips)
    else:
        official = [
            replace(image, path=photo(folder, image.path))
            for path, folder in zip(annotations, folders, strict=True)
            for image in _official_images(path, root, skips)
        ]
        split_of = _draw(root, official, drawn, seed) if splits == "paper" else read_splits(Path(splits))
        listed = with_splits(official, split_of, skips)
    return found_images("coco", root, listed, files=files, place=" or ".join(folders), skips=skips)


def _official_images(path: Path, root: Path, skips: Skips) -> Iterator[ListedImage]:
    """The images of a file of annotations with their captions; no split is stated, and paths are plain names."""
    data = read_json(path, _KEYS, root)
    captions: dict[int, list[str]] = {}
    seen: set[int] = set()
    for index, annotation in enumerate(value_of(data, "annotations", list, str(path))):
        where = f"{path}: annotations[{index}]"
        number, owner = value_of(annotation, "id", int, where), value_of(annotation, "image_id", int, where)
        if number in seen:
            skips.add(f"captions of {path.name} with the id of another", str(number))
        else:
            seen.add(number)
            captions.setdefault(owner, []).extend(only_texts([annotation.get("caption")], where, skips))
    for index, image in enumerate(value_of(data, "images", list, str(path))):
        where = f"{path}: images[{index}]"
        number = value_of(image, "id", int, where)
        yield ListedImage(
            image_id=str(number),
            path=value_of(image, "file_name", str, where),
            split="",
            captions=tuple(captions.get(number, ())),
            where=where,
        )
    known = {image["id"] for image in data["images"]}
    for number in sorted(captions.keys() - known):
        skips.add(f"images with captions that {path.name} does not list", str(number))


def _draw(root: Path, images: list[ListedImage], count: int, seed: int) -> dict[str, str]:
    ids = sorted({image.image_id for image in images})
    if len(ids) <= 2 * count:
        raise DataError(
            f"{root}: the annotations hold {len(ids):,} images; --splits paper draws {count:,} for val and {count:,} "
            "for test from more than these: use the whole annotations, or --splits with a splits.json of your own"
        )
    chosen = random.Random(seed).sample(ids, 2 * count)
    splits = dict.fromkeys(ids, "train")
    return splits | dict.fromkeys(chosen[:count], "val") | dict.fromkeys(chosen[count:], "test")


def _layout_error(root: Path, splits: str) -> DataError:
    folders = "the folders train2014 and val2014 of photos"
    images = (
        "photos and annotations come from the Download page of cocodataset.org (annotations under CC BY 4.0, photos "
        "under Flickr's terms of use)"
    )
    if splits == "karpathy":
        return layout_error(
            root,
            "MSCOCO",
            f"{folders}, or those of 2017, and dataset_coco.json with Karpathy's splits (here or in annotations)",
            f"{images}; {karpathy_offer('coco')}; without it, choose --splits paper",
        )
    return layout_error(
        root,
        "MSCOCO",
        f"{folders}, annotations/captions_train2014.json and annotations/captions_val2014.json, or all four of 2017",
        images,
    )
