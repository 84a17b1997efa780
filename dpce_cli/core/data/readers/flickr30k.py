"""Flickr30k from its captions file or Karpathy's (Young et al. 2014)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpce_cli.core.data.readers.annotations import ListedImage, found_images, value_of
from dpce_cli.core.data.readers.karpathy import find_karpathy, karpathy_offer, read_karpathy
from dpce_cli.core.data.readers.reading import Skips, layout_error, read_lines, scan_files
from dpce_cli.core.data.records import CaptionedImages
from dpce_cli.core.data.splits import read_splits, with_splits
from dpce_cli.core.errors import DataError

_PHOTO_FOLDERS = ("flickr30k-images", "flickr30k_images")
_TOKENS, _TABLE = "results_20130124.token", "results.csv"
_LINES = {
    _TOKENS: re.compile(r"([^\t]+)#(\d+)(?:\t(.*))?"),
    # One row of the file that is passed around has blanks in the place of its second bar.
    _TABLE: re.compile(r"([^|]+?)\s*\|\s*(\d+)(?:\s*\||\s)\s*(.*)"),
}
_TABLE_HEADER = re.compile(r"image_name\s*\|.*")
_FLICKR8K_LISTS = {"val": "Flickr_8k.devImages.txt", "test": "Flickr_8k.testImages.txt"}


def read_flickr30k(root: Path, *, splits: str) -> CaptionedImages:
    """The photos of `flickr30k-images` (or `flickr30k_images`) with their captions.

    Args:
        splits: "karpathy" reads `dataset_flickr30k.json`, captions included: 29,000 train, 1,014 val and 1,000 test
            images, in its order. "paper" reads `results_20130124.token` or `results.csv` and takes the images of the
            lists Flickr_8k.devImages.txt and Flickr_8k.testImages.txt, which Flickr30k contains, for val and test, and
            the other 29,783 for train (Zheng et al. 2020, section 5.1, and their code). Anything else is the path of
            a splits.json to use on the captions file.

    Raises:
        DataError: another layout, an unreadable or malformed file, an image in two splits, an unsafe path, or nothing
            left to read.
    """
    photos = next((name for name in _PHOTO_FOLDERS if os.path.isdir(root / name)), None)
    karpathy = find_karpathy(root, "flickr30k")
    captions = next((root / name for name in _LINES if os.path.isfile(root / name)), None)
    lists = {split: root / name for split, name in _FLICKR8K_LISTS.items()}
    whole = splits != "paper" or all(map(os.path.isfile, lists.values()))
    if photos is None or not whole or not (karpathy if splits == "karpathy" else captions):
        raise _layout_error(root, splits)

    def identify(record: Any, where: str) -> tuple[str, str]:
        name = value_of(record, "filename", str, where)
        return name, f"{photos}/{name}"

    skips = Skips()
    if splits == "karpathy" and karpathy:
        listed = read_karpathy(karpathy, root, "flickr30k", identify, skips)
    else:
        assert captions is not None
        captioned = list(_captioned(captions, root, photos, skips))
        split_of = _paper_splits(captioned, lists, root, skips) if splits == "paper" else read_splits(Path(splits))
        listed = with_splits(captioned, split_of, skips)
    files = set(scan_files(root, photos))
    return found_images("flickr30k", root, listed, files=files, place=photos, skips=skips)


def _captioned(path: Path, root: Path, photos: str, skips: Skips) -> Iterator[ListedImage]:
    """The images of the captions file; no split is stated."""
    captions: dict[str, dict[tuple[str, str], None]] = {}
    first: dict[str, str] = {}
    for where, line in read_lines(path, root):
        if path.name == _TABLE and not first and _TABLE_HEADER.fullmatch(line):
            continue
        match = _LINES[path.name].fullmatch(line)
        if match is None:
            form = "name.jpg#number, a tab and a caption" if path.name == _TOKENS else "name.jpg| number| caption"
            raise DataError(f"{where}: expected {form}; restore the published file")
        name, number, caption = match.groups(default="")
        texts = captions.setdefault(name, {})
        first.setdefault(name, where)
        if (number, caption) in texts:
            skips.add("repeated captions", where)
        texts[number, caption] = None
    for name, texts in captions.items():
        yield ListedImage(
            image_id=name,
            path=f"{photos}/{name}",
            split="",
            captions=tuple(caption for _, caption in texts),
            where=first[name],
        )


def _paper_splits(images: list[ListedImage], lists: dict[str, Path], root: Path, skips: Skips) -> dict[str, str]:
    """Flickr8k's dev images are val and its test images are test; 1234_5678abcd.jpg there is 1234.jpg here."""
    splits = dict.fromkeys((image.image_id for image in images), "train")
    for split, path in lists.items():
        for where, line in read_lines(path, root):
            name = f"{line.partition('_')[0]}.jpg"
            if name not in splits:
                skips.add(f"images of {path.name} without captions", line)
            elif splits[name] not in ("train", split):
                raise DataError(f"{where}: {line!a} is in the {splits[name]} split too; restore the official files")
            else:
                splits[name] = split
    return splits


def _layout_error(root: Path, splits: str) -> DataError:
    photos = f"a folder {' or '.join(_PHOTO_FOLDERS)} of photos"
    offer = (
        "photos and captions come by the request form of the University of Illinois, "
        "shannon.cs.illinois.edu/DenotationGraph (non-commercial research and education only)"
    )
    if splits == "karpathy":
        return layout_error(
            root,
            "Flickr30k",
            f"{photos}, and dataset_flickr30k.json with Karpathy's splits (here or in annotations)",
            f"{offer}; {karpathy_offer('flickr30k')}; without it, choose --splits paper",
        )
    expected = f"{photos}, and {_TOKENS} or {_TABLE}"
    if splits == "paper":
        expected += f", and Flickr8k's lists {' and '.join(_FLICKR8K_LISTS.values())} for the paper's val and test"
        offer += "; the lists are in Flickr8k_text.zip of Flickr8k"
    return layout_error(root, "Flickr30k", expected, offer)
