"""CUHK-PEDES, photos and descriptions of pedestrians (Li et al. 2017)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dpce_cli.core.data.readers.annotations import ListedImage, found_images, read_json, texts_of, value_of
from dpce_cli.core.data.readers.reading import Skips, layout_error, scan_files
from dpce_cli.core.data.records import SPLITS, CaptionedImages
from dpce_cli.core.errors import DataError

_PHOTOS, _ANNOTATIONS = "imgs", "reid_raw.json"
_KEYS = frozenset({"id", "file_path", "captions", "split"})


def read_cuhk_pedes(root: Path) -> CaptionedImages:
    """The photos below `imgs` with the descriptions of `reid_raw.json`; a photo's identity is its person.

    Raises:
        DataError: another layout, an unreadable or malformed file, a person or photo in two splits, a photo of two
            persons, an unsafe path, or nothing left to read.
    """
    if not (os.path.isdir(root / _PHOTOS) and os.path.isfile(root / _ANNOTATIONS)):
        raise layout_error(
            root,
            "CUHK-PEDES",
            f"a folder {_PHOTOS} of photos, and {_ANNOTATIONS}",
            "its authors send it to researchers who ask by e-mail, for academic research only: see "
            "'Person Search with Natural Language Description' on Shuang Li's page and on GitHub "
            "(ShuangLI59/Person-Search-with-Natural-Language-Description)",
        )
    files, skips = set(scan_files(root, _PHOTOS)), Skips()
    listed = _listed(root / _ANNOTATIONS)
    return found_images("cuhk-pedes", root, listed, files=files, place=_PHOTOS, skips=skips)


def _listed(path: Path) -> Iterator[ListedImage]:
    records = read_json(path, _KEYS)
    if not isinstance(records, list):
        raise DataError(f"{path}: is no list of photos; restore the published file")
    for index, record in enumerate(records):
        where = f"{path}: [{index}]"
        split, name = value_of(record, "split", str, where), value_of(record, "file_path", str, where)
        if split not in SPLITS:
            raise DataError(f"{where}: unknown split {split!a}; restore the published file")
        yield ListedImage(
            image_id=name,
            path=f"{_PHOTOS}/{name}",
            split=split,
            captions=texts_of(record, "captions", where),
            where=where,
            identity=str(value_of(record, "id", int, where)),
        )
