"""What every data set reader returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedImage:
    """One image and its captions: a class of the instance loss, unless it shares its identity's."""

    image_id: str
    """Unique within the data set; what results are reported under."""
    path: str
    """POSIX path relative to the data set's root; never leaves it."""
    split: str
    """One of `SPLITS`."""
    captions: tuple[str, ...]
    """At least one; whitespace-trimmed, never empty."""
    identity: str | None = None
    """Who or what is shown, where other images may show the same: they are one class. None: the image is its own."""
    extent: tuple[int, int, int] | None = None
    """Where the image is in the tar that `path` leads through; see `core.data.shards`. None: a file of its own."""


def instance_ids(images: Sequence[CaptionedImage]) -> list[int]:
    """The class of each image in the instance loss, from 0 in order of appearance: its identity's or its own."""
    numbers: dict[str | int, int] = {}
    return [
        numbers.setdefault(index if image.identity is None else image.identity, len(numbers))
        for index, image in enumerate(images)
    ]


@dataclass(frozen=True, kw_only=True)
class CaptionedImages:
    """A data set in memory: ids, relative paths and captions; pixels stay on disk."""

    name: str
    root: Path
    images: tuple[CaptionedImage, ...]
    source: Path | None = None
    """Where the photos came from, if `root` holds copies of them."""
    skipped: tuple[str, ...] = ()
    """One line for each kind of input that was left out: what, how many, the first few names."""
