"""Photos and descriptions of pedestrians: CUHK-PEDES (Li et al. 2017), ICFG-PEDES and RSTPReid."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpce_cli.core.data.readers.annotations import ListedImage, found_images, read_json, value_of
from dpce_cli.core.data.readers.reading import Skips, layout_error, only_texts, scan_files
from dpce_cli.core.data.records import SPLITS, CaptionedImages
from dpce_cli.core.errors import DataError

_PHOTOS = "imgs"
_KEYS = frozenset({"id", "file_path", "img_path", "captions", "split"})
_HELD_OUT = 1 / 13
"""Share of CUHK-PEDES' 13,003 persons that are for validation, and as many for testing."""
_NO_SPLITS = "caption_all.json"


def read_cuhk_pedes(root: Path, *, seed: int = 0) -> CaptionedImages:
    """The photos below `imgs` with the descriptions of `reid_raw.json`; a photo's identity is its person.

    Where there is only `caption_all.json`, which states no splits, a thirteenth of the persons each is drawn for
    validation and test with `seed`, as many as the published splits have: results do not compare with published ones.

    Raises:
        DataError: another layout, an unreadable or malformed file, a person or photo in two splits, a photo of two
            persons, an unsafe path, or nothing left to read.
    """
    return _read(
        root,
        "CUHK-PEDES",
        ("reid_raw.json", _NO_SPLITS),
        "its authors send it to researchers who ask by e-mail, for academic research only: see "
        "'Person Search with Natural Language Description' on Shuang Li's page and on GitHub "
        "(ShuangLI59/Person-Search-with-Natural-Language-Description)",
        seed=seed,
    )


def read_icfg_pedes(root: Path) -> CaptionedImages:
    """The photos below `imgs` with the descriptions of `ICFG-PEDES.json` (Ding et al. 2021), as `read_cuhk_pedes`.

    The same number in two splits is taken for two persons, because published code disagrees on whether the numbers of
    the test split begin anew.

    Raises: as `read_cuhk_pedes`.
    """
    return _read(
        root,
        "ICFG-PEDES",
        ("ICFG-PEDES.json", "ICFG_PEDES.json"),
        "its authors send it to researchers who ask: see 'Semantically Self-Aligned Network for Text-to-Image "
        "Part-aware Person Re-identification' on GitHub (zifyloo/SSAN)",
        numbered_per_split=True,
    )


def read_rstp_reid(root: Path) -> CaptionedImages:
    """The photos below `imgs` with the descriptions of `data_captions.json` (Zhu et al. 2021), as `read_cuhk_pedes`.

    Raises: as `read_cuhk_pedes`.
    """
    return _read(
        root,
        "RSTPReid",
        ("data_captions.json",),
        "its authors send it to researchers who ask: see 'DSSL: Deep Surroundings-person Separation Learning for "
        "Text-based Person Retrieval' on GitHub (NjtechCVLab/RSTPReid-Dataset)",
    )


def _read(
    root: Path, name: str, files: Sequence[str], offer: str, *, seed: int = 0, numbered_per_split: bool = False
) -> CaptionedImages:
    candidates = (root / folder / file for file in files for folder in ("", "annotations"))
    annotations = next((path for path in candidates if os.path.isfile(path)), None)
    if annotations is None or not os.path.isdir(root / _PHOTOS):
        expected = f"a folder {_PHOTOS} of photos, and {' or '.join(files)} (here or in annotations)"
        raise layout_error(root, name, expected, offer)
    skips = Skips()
    listed = list(_listed(annotations, root, skips))
    if numbered_per_split:
        listed = [replace(image, identity=f"{image.split} {image.identity}") for image in listed]
    if annotations.name == _NO_SPLITS:
        listed = _with_drawn_splits(listed, seed)
        skips.add(f"published splits, which {_NO_SPLITS} does not state: persons are drawn with --seed", _NO_SPLITS)
    photos = set(scan_files(root, _PHOTOS))
    return found_images(name.lower(), root, listed, files=photos, place=_PHOTOS, skips=skips)


def _listed(path: Path, root: Path, skips: Skips) -> Iterator[ListedImage]:
    records = read_json(path, _KEYS, root)
    if not isinstance(records, list):
        raise DataError(f"{path}: is no list of photos; restore the published file")
    for index, record in enumerate(records):
        where = f"{path}: [{index}]"
        name = value_of(record, "img_path" if _has(record, "img_path") else "file_path", str, where)
        split = "train" if path.name == _NO_SPLITS else value_of(record, "split", str, where)
        if split not in SPLITS:
            raise DataError(f"{where}: unknown split {split!a}; restore the published file")
        yield ListedImage(
            image_id=name,
            path=f"{_PHOTOS}/{name}",
            split=split,
            captions=tuple(only_texts(value_of(record, "captions", list, where), where, skips)),
            where=where,
            identity=str(value_of(record, "id", int, where)),
        )


def _has(record: Any, key: str) -> bool:
    return isinstance(record, dict) and key in record


def _with_drawn_splits(listed: Sequence[ListedImage], seed: int) -> list[ListedImage]:
    persons = sorted({str(image.identity) for image in listed})
    random.Random(seed).shuffle(persons)
    held_out = round(_HELD_OUT * len(persons))
    split_of = dict.fromkeys(persons, "train")
    split_of |= dict.fromkeys(persons[:held_out], "val") | dict.fromkeys(persons[held_out : 2 * held_out], "test")
    return [replace(image, split=split_of[str(image.identity)]) for image in listed]
