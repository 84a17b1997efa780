"""A person's own captioned images: a folder of images with captions in a table or in text files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from dpce_cli.core.data.readers.matching import PhotoNames
from dpce_cli.core.data.readers.reading import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    CaptionRow,
    Skips,
    captioned_images,
    check_fractions,
    drawn_splits,
    folder_names,
    group_captions,
    read_lines,
    scan_files,
)
from dpce_cli.core.data.readers.tables import Columns, Rows, table_rows
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages
from dpce_cli.core.errors import DataError

_TABLES = tuple(
    f"{name}{suffix}" for name in ("captions", "metadata") for suffix in (".csv", ".tsv", ".jsonl", ".parquet")
)
_KAGGLE = "captions.txt"
"""A table in spite of its ending, as Kaggle's copies of Flickr8k have it."""


def read_folder(
    root: Path,
    *,
    captions: Path | None,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> CaptionedImages:
    """The images in `root` and below that have captions; `image_id` is the path relative to `root`.

    `captions` is a table as `table_rows` reads it, one caption per row: CSV with commas, semicolons or tabs, JSON Lines
    (where a list `captions` may stand for one caption) or Parquet. If it is None, the one file of `root` that is called
    captions or metadata is read, such as captions.csv or a Hugging Face metadata.jsonl, and if there is none the `.txt`
    file beside each image, one caption per line. A photo's name may differ a little from the file's (see `PhotoNames`).

    Splits are those of the file (dev, valid and validation mean val). If it states none, `val_fraction` and
    `test_fraction` of the images (rounded down) are drawn with `seed`.

    Args:
        image_column: what the image's column is called, if not one of the usual names.
        caption_column: likewise.

    Raises:
        ConfigError: the fractions are negative or leave nothing to train on.
        DataError: an unreadable or malformed file, an unknown split or two splits of one image, an unsafe
            path, or nothing left to read.
    """
    check_fractions(val_fraction, test_fraction)
    skips = Skips()
    files = scan_files(root, suffixes=(*IMAGE_SUFFIXES, *UNREAD_SUFFIXES, ".txt"))
    images = {path for path in files if path.lower().endswith(IMAGE_SUFFIXES)}
    unread = {path for path in files if path.lower().endswith(UNREAD_SUFFIXES)}
    texts = [path for path in files if path not in images | unread and path != _KAGGLE]
    source = captions or _captions_file(root, images, skips)
    if source is None and (image_column or caption_column):
        raise DataError(
            f"{root}: holds no table of captions, which --image-column and --caption-column are for; name one with "
            "--captions, or leave these options out"
        )
    if source is None:
        rows = list(_beside_images(root, texts, images | unread, skips))
    else:
        rows = list(table_rows(source, Columns(image_column, caption_column), skips))
    names = PhotoNames(root, images)
    grouped = group_captions(
        (row for row, _ in rows), images=images, place=str(root), skips=skips, names=names, unread=unread
    )
    splits = _stated_splits(rows, names) or drawn_splits(sorted(grouped), val_fraction, test_fraction, seed)
    found = (
        CaptionedImage(image_id=path, path=path, split=splits[path], captions=tuple(texts))
        for path, texts in sorted(grouped.items())
    )
    return captioned_images("folder", root, found, skips)


def _captions_file(root: Path, images: set[str], skips: Skips) -> Path | None:
    """The table of captions in `root`, if there is one; a file that could be one and is not read is named."""
    here = folder_names(root)
    found = [name for name in here if name.lower() in _TABLES]
    if _KAGGLE in here and not {PurePosixPath(image).with_suffix("").as_posix() for image in images} & {"captions"}:
        found.append(_KAGGLE)
    if len(found) > 1:
        raise DataError(f"{root}: holds {' and '.join(found)}; name the one to read with --captions")
    for name in here:
        if name not in found and name.lower().endswith((".csv", ".tsv", ".jsonl", ".parquet")):
            skips.add("tables that are not read (name one with --captions)", name)
    return root / found[0] if found else None


def _beside_images(root: Path, files: list[str], images: set[str], skips: Skips) -> Rows:
    texts = {PurePosixPath(path).with_suffix(""): path for path in files}
    for image in sorted(images):
        text = texts.get(PurePosixPath(image).with_suffix(""))
        for where, line in read_lines(root / text) if text else ():
            yield CaptionRow(image=image, caption=line, where=where), None
    stems = {PurePosixPath(image).with_suffix("") for image in images}
    for stem, text in texts.items():
        if stem not in stems:
            skips.add("text files without an image beside them", text)


def _stated_splits(rows: list[tuple[CaptionRow, str | None]], names: PhotoNames) -> dict[str, str]:
    """The split of each image; empty if no row states any."""
    splits: dict[str, str] = {}
    for row, split in rows:
        image = names.find(row.image)
        if image is not None and split is not None and splits.setdefault(image, split) != split:
            raise DataError(f"{row.where}: {image} is in {split} here and in {splits[image]} before; choose one")
    for row, split in rows:
        if splits and split is None:
            raise DataError(f"{row.where}: states no split, but other lines do; add one to every line or to none")
    return splits
