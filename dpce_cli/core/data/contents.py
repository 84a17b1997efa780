"""Recognise replaced photos by their contents, without reading whole files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.data.shards import Extent, open_photo
from dpce_cli.core.errors import DataError
from dpce_cli.core.processes.collectives import decided_by_first
from dpce_cli.core.storage.rows import partial_path, read_meta

UNREADABLE = "unreadable"
_SAMPLE = 4096


def photo_content(path: Path, extent: Extent | None) -> str:
    """A photo's size and a hash of its first and last 4 KiB, which are quick to read.

    Modification times are no alternative, because they change when a data set is copied.
    """
    try:
        with open_photo(path, extent) as file:
            head = file.read(_SAMPLE)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _SAMPLE))
            return f"{size} {hashlib.sha256(head + file.read(_SAMPLE)).hexdigest()[:16]}"
    except (OSError, DataError):
        return UNREADABLE


def photo_contents(root: Path, images: Iterable[CaptionedImage]) -> list[str]:
    """The `photo_content` of each photo, as process 0 reads it; the same list on every process."""
    return decided_by_first(lambda: [photo_content(root / image.path, image.extent) for image in images])


def is_stored(path: Path, meta: Mapping[str, Any], contents: Sequence[str]) -> bool:
    """Whether there is a complete store at `path` that was made from these photos and with this `meta`."""
    return decided_by_first(lambda: _is_current(read_meta(path), meta, contents))


def meta_to_fill(path: Path, meta: Mapping[str, Any], contents: Sequence[str]) -> dict[str, Any]:
    """The `meta` of a store to fill at `path`: that of a store begun with these photos, or a new one."""
    begun = decided_by_first(lambda: read_meta(partial_path(path), whole=False))
    return begun if begun and _is_current(begun, meta, contents) else {**meta, "contents": list(contents)}


def replaced_photos(then: Sequence[str], now: Sequence[str]) -> list[int]:
    """The indices of the photos whose contents have changed.

    A photo that cannot be read, now or then, counts as unchanged: nothing is outdated because a disk is not mounted.

    Args:
        then: the content of each photo; `now` likewise, in the same order.
    """
    pairs = enumerate(zip(then, now, strict=True))
    return [index for index, (one, other) in pairs if one != other and UNREADABLE not in (one, other)]


def _is_current(stored: Mapping[str, Any] | None, meta: Mapping[str, Any], contents: Sequence[str]) -> bool:
    """Whether a store was made with this `meta` from these photos, and no photo was replaced since.

    Args:
        stored: the store's `meta` and its photos' contents.
    """
    return (
        stored is not None
        and stored == {**meta, "contents": stored.get("contents")}
        and len(contents) == len(stored["contents"])
        and not replaced_photos(stored["contents"], contents)
    )
