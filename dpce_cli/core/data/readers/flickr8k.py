"""Flickr8k from its official files (Hodosh, Young and Hockenmaier 2013)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from dpce_cli.core.data.readers.matching import PhotoNames
from dpce_cli.core.data.readers.reading import (
    CaptionRow,
    Skips,
    captioned_images,
    group_captions,
    layout_error,
    read_lines,
    relative_path,
    scan_files,
)
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages
from dpce_cli.core.errors import DataError

_PHOTO_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")
_TEXT_FOLDERS = ("", "Flickr8k_text")
_TOKENS = "Flickr8k.token.txt"
_SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def read_flickr8k(root: Path, *, captions: Path | None = None) -> CaptionedImages:
    """The images of the official splits with their captions; without a list of test images, no test split.

    Photos are looked for in `Flicker8k_Dataset` (the official spelling), `Flickr8k_Dataset` or `Images`, the
    text files in `root` itself or in `Flickr8k_text`. What cannot be used is left out and counted, such as
    `2258277193_586949ec62.jpg.1`, a photo that the official token file names and that does not exist.

    Args:
        captions: instead of `Flickr8k.token.txt`, a file of the same form, such as the Chinese captions of Li et al.
            2016, whose lines are `name#zhm#number caption`.

    Raises:
        DataError: another layout, an unreadable or malformed text file, an image in two splits, an unsafe
            path, or nothing left to read.
    """
    photos, texts = _locate(root)
    skips = Skips()
    images = {path.removeprefix(f"{photos}/") for path in scan_files(root, photos)}
    rows = _rows(captions, None) if captions else _rows(texts / _TOKENS, root)
    grouped = group_captions(rows, images=images, place=photos, skips=skips, names=PhotoNames(None, images))
    splits = _splits(texts, root)
    for name in sorted(splits.keys() - images):
        skips.add(f"images of a split that are not in {photos}", name)
    for name in sorted(grouped.keys() - splits.keys()):
        skips.add("images in no split", name)
    found = (
        CaptionedImage(image_id=name, path=f"{photos}/{name}", split=split, captions=tuple(grouped[name]))
        for name, split in sorted(splits.items())
        if name in grouped
    )
    return captioned_images("flickr8k", root, found, skips)


def _locate(root: Path) -> tuple[str, Path]:
    """The name of the folder of photos, and the folder of the text files."""
    photos = [name for name in _PHOTO_FOLDERS if os.path.isdir(root / name)]
    required = (_TOKENS, _SPLIT_FILES["train"], _SPLIT_FILES["val"])
    texts = [
        root / folder for folder in _TEXT_FOLDERS if all(os.path.isfile(root / folder / name) for name in required)
    ]
    if photos and texts:
        return photos[0], texts[0]
    raise layout_error(
        root,
        "Flickr8k",
        f"a folder {' or '.join(_PHOTO_FOLDERS)} of photos, and {', '.join(required)} (here or in Flickr8k_text)",
        "unpack Flickr8k_Dataset.zip and Flickr8k_text.zip, which come from the page of Hodosh, Young and "
        "Hockenmaier, 'Framing Image Description as a Ranking Task' (non-commercial research and education only), into "
        "one folder",
    )


def _rows(tokens: Path, root: Path | None) -> Iterator[CaptionRow]:
    for where, line in read_lines(tokens, root):
        match = re.fullmatch(r"([^\t#]+)#(?:\w+#)?(\d+)(?:[\t ](.*))?", line)
        if match is None:
            raise DataError(f"{where}: expected name.jpg#number, a tab and a caption; restore the official file")
        image, number, caption = match.groups(default="")
        yield CaptionRow(image=image, number=number, caption=caption, where=where)


def _splits(texts: Path, root: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split, file_name in _SPLIT_FILES.items():
        if (texts / file_name).is_file():
            for where, line in read_lines(texts / file_name, root):
                name = relative_path(line, where)
                if splits.setdefault(name, split) != split:
                    raise DataError(f"{where}: {name} is in the {splits[name]} split too; restore the official files")
    return splits
