"""The records that all data set readers return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpce_cli.core.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedImage:
    """One image and its captions: a class of the instance loss, or a part of its identity's class."""

    image_id: str
    """Unique within the data set; names the image in results."""
    path: str
    """POSIX path relative to the data set's root; never outside of it."""
    split: str
    """One of `SPLITS`."""
    captions: tuple[str, ...]
    """At least one; without whitespace at the ends, never empty."""
    identity: str | None = None
    """The person or thing in the image; all images of an identity are one class. None: the image is a class itself."""
    extent: tuple[int, int, int] | None = None
    """The image's position in a tar, see `core.data.shards`; None: the image is a file itself."""


def instance_ids(images: Sequence[CaptionedImage]) -> list[int]:
    """The class of each image in the instance loss, numbered from 0 in the order of the images."""
    numbers: dict[str | int, int] = {}
    return [
        numbers.setdefault(index if image.identity is None else image.identity, len(numbers))
        for index, image in enumerate(images)
    ]


@dataclass(frozen=True, kw_only=True)
class CaptionedImages:
    """A data set in memory: ids, relative paths and captions, without pixels."""

    name: str
    root: Path
    images: tuple[CaptionedImage, ...]
    source: Path | None = None
    """The folder of the original photos, if `root` has copies of them."""
    skipped: tuple[str, ...] = ()
    """One line per kind of input that was left out: what, how many, and the first few names."""


def check_encodable(text: str, where: str) -> None:
    """See that a text can be written.

    Raises:
        DataError: it has lone surrogates: a name that is not UTF-8, or JSON with half a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {text!a} is not Unicode text; rewrite or rename it") from error
