"""A person's own captioned images: a folder of images with captions in CSV, JSON Lines or text files."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from dpce_cli.core.data.readers.reading import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    CaptionRow,
    Skips,
    captioned_images,
    check_fractions,
    drawn_splits,
    group_captions,
    json_object,
    read_lines,
    read_text,
    relative_path,
    scan_files,
    stated_captions,
)
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages
from dpce_cli.core.errors import DataError

_IMAGE_KEYS = ("image", "file", "filename", "path")
_Rows = Iterator[tuple[CaptionRow, str | None]]
"""Captions, each with its split if the file states one."""


def read_folder(
    root: Path, *, captions: Path | None, val_fraction: float, test_fraction: float, seed: int
) -> CaptionedImages:
    """The images in `root` and below that have captions; `image_id` is the path relative to `root`.

    `captions` is a `.csv` file whose header names a column for the image (image, file, filename or path), a
    column caption and, if wanted, split, one row a caption; or a `.jsonl` file of objects with the same keys,
    where captions may be a list in place of caption. If it is None, `captions.csv` or `captions.jsonl` in
    `root` is read if there, and otherwise the `.txt` file beside each image, one caption a line.

    Splits are those of the file (dev, valid and validation mean val). If it states none, `val_fraction` and
    `test_fraction` of the images (rounded down) are drawn with `seed`.

    Raises:
        ConfigError: the fractions are negative or leave nothing to train on.
        DataError: an unreadable or malformed file, an unknown split or two splits of one image, an unsafe
            path, or nothing left to read.
    """
    check_fractions(val_fraction, test_fraction)
    skips = Skips()
    files = scan_files(root, suffixes=(*IMAGE_SUFFIXES, ".txt"))
    images = {path for path in files if path.lower().endswith(IMAGE_SUFFIXES)}
    source = captions or _captions_file(root)
    rows = list(_beside_images(root, files, images, skips) if source is None else _rows(source))
    grouped = group_captions((row for row, _ in rows), images=images, place=str(root), skips=skips)
    splits = _stated_splits(rows) or drawn_splits(sorted(grouped), val_fraction, test_fraction, seed)
    found = (
        CaptionedImage(image_id=path, path=path, split=splits[path], captions=tuple(texts))
        for path, texts in sorted(grouped.items())
    )
    return captioned_images("folder", root, found, skips)


def _captions_file(root: Path) -> Path | None:
    found = [path for path in (root / "captions.csv", root / "captions.jsonl") if path.is_file()]
    if len(found) > 1:
        raise DataError(f"{root}: holds captions.csv and captions.jsonl; say which of them to read")
    return found[0] if found else None


def _rows(path: Path) -> _Rows:
    match path.suffix.lower():
        case ".csv":
            return _csv_rows(path)
        case ".jsonl":
            return _json_rows(path)
    raise DataError(f"{path}: captions are read from a .csv or .jsonl file; rename or convert it")


def _csv_rows(path: Path) -> _Rows:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    finished = 0  # an open quote swallows the rest of the file, so the reader's own line says little
    try:
        header = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        finished = reader.line_num
        image_key = _image_key(header, f"{path}:1")
        if header.count("caption") != 1:
            raise DataError(f"{path}:1: needs one column caption in its header; found {header[:10]}")
        for record in reader:
            finished = reader.line_num
            where = f"{path}:{finished}"
            if None in record or None in record.values():
                raise DataError(f"{where}: not as many cells as the header; quote captions that contain commas")
            row = CaptionRow(image=record[image_key].strip(), caption=record["caption"], where=where)
            yield row, _split(record["split"], where) if "split" in record else None
    except csv.Error as error:
        raise DataError(f"{path}:{finished + 1}: not valid CSV ({error}); check the quotes") from error


def _json_rows(path: Path) -> _Rows:
    for where, line in read_lines(path):
        record = json_object(line, where)
        image = record[_image_key(record, where)]
        if not isinstance(image, str):
            raise DataError(f"{where}: needs a text for the image; name its file")
        split = _split(record["split"], where) if "split" in record else None
        for text in stated_captions(record, where):
            yield CaptionRow(image=image, caption=text, where=where), split


def _beside_images(root: Path, files: list[str], images: set[str], skips: Skips) -> _Rows:
    texts = {PurePosixPath(path).with_suffix(""): path for path in files if path not in images}
    for image in sorted(images):
        text = texts.get(PurePosixPath(image).with_suffix(""))
        for where, line in read_lines(root / text) if text else ():
            yield CaptionRow(image=image, caption=line, where=where), None
    stems = {PurePosixPath(image).with_suffix("") for image in images}
    for stem, text in texts.items():
        if stem not in stems:
            skips.add("text files without an image beside them", text)


def _image_key(keys: Collection[str], where: str) -> str:
    found = [key for key in keys if key in _IMAGE_KEYS]
    if len(found) != 1:
        raise DataError(f"{where}: needs exactly one of {', '.join(_IMAGE_KEYS)}; found {list(keys)[:10]}")
    return found[0]


def _split(value: object, where: str) -> str:
    split = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise DataError(f"{where}: unknown split {value!r}; use one of {', '.join(SPLIT_NAMES)}")
    return split


def _stated_splits(rows: list[tuple[CaptionRow, str | None]]) -> dict[str, str]:
    """The split of each image; empty if no row states any."""
    splits: dict[str, str] = {}
    for row, split in rows:
        image = relative_path(row.image, row.where)
        if split is not None and splits.setdefault(image, split) != split:
            raise DataError(f"{row.where}: {image} is in {split} here and in {splits[image]} before; choose one")
    for row, split in rows:
        if splits and split is None:
            raise DataError(f"{row.where}: states no split, but other lines do; add one to every line or to none")
    return splits
