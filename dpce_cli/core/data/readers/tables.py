"""Captions in tables: CSV with commas, semicolons or tabs, JSON Lines, and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpce_cli.core.data.readers.reading import (
    SPLIT_NAMES,
    CaptionRow,
    Skips,
    json_object,
    read_lines,
    read_text,
    stated_captions,
)
from dpce_cli.core.errors import DataError

IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "image_path")
CAPTION_COLUMNS = ("caption", "text", "sentence", "description")
_DELIMITERS = ",\t;"
_NO_IMAGE = "rows without an image"
Rows = Iterator[tuple[CaptionRow, str | None]]
"""Captions, each with its split if the file states one."""


@dataclass(frozen=True)
class Columns:
    """What the columns are called; None takes one of the usual names."""

    image: str | None = None
    caption: str | None = None

    def image_key(self, keys: Collection[str], where: str) -> str:
        return _one_of(keys, self.image, IMAGE_COLUMNS, "--image-column", where)

    def caption_key(self, keys: Collection[str], where: str) -> str:
        return _one_of(keys, self.caption, CAPTION_COLUMNS, "--caption-column", where)


def _one_of(keys: Collection[str], wanted: str | None, usual: Sequence[str], option: str, where: str) -> str:
    names = (wanted.strip().lower(),) if wanted else usual
    found = [key for key in keys if key in names]
    if len(found) != 1:
        raise DataError(
            f"{where}: needs exactly one column {' or '.join(names)}; found {list(keys)[:10]}; rename the right one to "
            f"{names[0]!r}, or name it with prepare-vocab's {option}"
        )
    return found[0]


def table_rows(path: Path, columns: Columns, skips: Skips) -> Rows:
    """The captions of a `.csv`, `.tsv`, `.txt`, `.jsonl` or `.parquet` file, each with its image and split.

    Upper and lower case of the columns' names do not matter. A caption that is not text, such as an empty cell, is
    counted in `skips`, and so is a row without an image.

    Raises:
        DataError: the file cannot be read, or its rows lack an image or a caption.
    """
    match path.suffix.lower():
        case ".csv" | ".tsv" | ".txt":
            return _csv_rows(path, columns, skips)
        case ".jsonl":
            lines = ((where, json_object(line, where)) for where, line in read_lines(path))
            return _record_rows(lines, columns, skips)
        case ".parquet":
            return _record_rows(_parquet_records(path), columns, skips)
    raise DataError(f"{path}: captions are read from .csv, .tsv, .jsonl and .parquet files; rename or convert this one")


def _csv_rows(path: Path, columns: Columns, skips: Skips) -> Rows:
    text = read_text(path)
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    finished = 0  # an open quote swallows the rest of the file, so the reader's own line says little
    try:
        header = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        finished = reader.line_num
        image_key, caption_key = (find(header, f"{path}:1") for find in (columns.image_key, columns.caption_key))
        for record in reader:
            finished = reader.line_num
            where = f"{path}:{finished}"
            if None in record or None in record.values():
                raise DataError(f"{where}: not as many cells as the header; quote captions that contain {delimiter!r}")
            image = record[image_key].strip()
            if not image:
                skips.add(_NO_IMAGE, where)
                continue
            row = CaptionRow(image=image, caption=record[caption_key], where=where)
            yield row, split_name(record["split"], where) if "split" in record else None
    except csv.Error as error:
        raise DataError(f"{path}:{finished + 1}: not valid CSV ({error}); check the quotes") from error


def _record_rows(records: Iterator[tuple[str, Mapping[str, Any]]], columns: Columns, skips: Skips) -> Rows:
    for where, cells in records:
        record = {str(key).strip().lower(): value for key, value in cells.items()}
        image = record[columns.image_key(record, where)]
        if image is None or image != image or image == "":  # NaN differs from itself
            skips.add(_NO_IMAGE, where)
            continue
        if not isinstance(image, str):
            raise DataError(f"{where}: needs a text for the image; name its file")
        split = split_name(record["split"], where) if record.get("split") is not None else None
        if columns.caption is None and "captions" in record:
            stated = record
        else:
            stated = {"caption": record[columns.caption_key(record, where)]}
        for text in stated_captions(stated, where, skips):
            yield CaptionRow(image=image, caption=text, where=where), split


def _parquet_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs the library pyarrow; pip install 'dpce[parquet]'") from error
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", record
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); check the file") from error


def split_name(value: object, where: str) -> str:
    """Our name of a split.

    Raises:
        DataError: it is none of `SPLIT_NAMES`.
    """
    split = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise DataError(f"{where}: unknown split {value!r}; use one of {', '.join(SPLIT_NAMES)}")
    return split
