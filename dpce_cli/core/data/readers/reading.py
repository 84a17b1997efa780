"""What the readers of captioned images have in common: files, rows of captions, and what is left out."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dpce_cli.core.data.images import FORMATS
from dpce_cli.core.data.readers.matching import PhotoNames
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages, check_encodable
from dpce_cli.core.data.shards import check_inside
from dpce_cli.core.errors import ConfigError, DataError

_ALWAYS_READ = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_PLUGIN_SUFFIXES = {"AVIF": (".avif",), "HEIF": (".heic", ".heif")}
IMAGE_SUFFIXES = _ALWAYS_READ + tuple(
    suffix for name, suffixes in _PLUGIN_SUFFIXES.items() if name in FORMATS for suffix in suffixes
)
UNREAD_SUFFIXES = tuple(
    suffix
    for suffix in (
        ".avif", ".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw",
        ".orf", ".rw2",
    )
    if suffix not in IMAGE_SUFFIXES
)  # fmt: skip
"""Photos of formats that are not read, to be named and not taken for missing."""
SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "dev": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_SPACES = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")  # control characters too: they break files, tables and terminals


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRow:
    """One caption as a file states it."""

    image: str
    """Path of the image relative to the data set's root, as written."""
    caption: str
    where: str
    """File and line, for messages."""
    number: str = ""
    """Tells equal captions of one image apart where a data set numbers them."""


class Skips:
    """Counts what a reader leaves out, kind by kind."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        self._names.setdefault(kind, []).append(name if name.isprintable() else ascii(name))

    def lines(self) -> tuple[str, ...]:
        """One line per kind: what, how many, and the first three names."""
        return tuple(f"{kind}: {len(names):,} (first: {', '.join(names[:3])})" for kind, names in self._names.items())


def read_text(path: Path, root: Path | None = None) -> str:
    """The UTF-8 text of a file, without its byte order mark.

    Args:
        root: the data set's folder, out of which no link may lead; None for a file that a person named.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    if root is not None:
        check_inside(path, os.path.realpath(root))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return decode(data, str(path))


def decode(data: bytes, where: str) -> str:
    """The UTF-8 text of a file's content, without its byte order mark.

    Raises:
        DataError: it is not UTF-8.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}:{line}: not UTF-8 text; save the file as UTF-8") from error


def read_lines(path: Path, root: Path | None = None) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, trimmed, each after its `file:line`; `root` as in `read_text`."""
    return numbered_lines(read_text(path, root), str(path))


def numbered_lines(text: str, where: str) -> Iterator[tuple[str, str]]:
    """The lines of a file's text that are not blank, trimmed, each after its `file:line`."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{where}:{number}", line.strip()


def json_object(text: str, where: str) -> dict[str, Any]:
    """The object that `text` is in JSON.

    Raises:
        DataError: it is not valid JSON, or no object.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); put one whole object there") from error
    if not isinstance(record, dict):
        raise DataError(f'{where}: not an object; write it as {{"caption": ...}}, with all else in it')
    return record


def stated_captions(record: Mapping[str, Any], where: str, skips: Skips) -> list[str]:
    """The text `caption`, or else the list of texts `captions`, of an object.

    What is not text, such as a number, null or NaN, is counted in `skips`.

    Raises:
        DataError: it has neither.
    """
    if "caption" not in record and "captions" not in record:
        raise DataError(f"{where}: needs a text caption or a list captions of texts")
    texts = record["caption"] if "caption" in record else record["captions"]
    return only_texts(texts if isinstance(texts, list) else [texts], where, skips)


def only_texts(values: Iterable[object], where: str, skips: Skips) -> list[str]:
    """The texts among what stands for captions; anything else, such as null or NaN, is counted in `skips`."""
    texts = []
    for text in values:
        if isinstance(text, str):
            texts.append(text)
        else:
            skips.add("captions that are no text", f"{where} ({json.dumps(text, default=str)[:40]})")
    return texts


def folder_names(folder: Path) -> list[str]:
    """Sorted names of what a folder holds.

    Raises:
        DataError: no such folder, or it cannot be listed.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise _unlistable(folder, error) from error


def layout_error(root: Path, name: str, expected: str, remedy: str) -> DataError:
    """What a data set's folder should hold, what it holds, and what to do about it.

    Raises:
        DataError: no such folder, or it cannot be listed.
    """
    found = folder_names(root)
    listed = ", ".join(found[:12]) or "nothing"
    return DataError(
        f"{root}: not laid out as {name}: expected {expected}; found {listed}{', ...' if len(found) > 12 else ''}; "
        f"{remedy}"
    )


def scan_files(root: Path, folder: str = "", suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Sorted POSIX paths, relative to `root`, of the files in `root / folder` and below that have a suffix.

    Hidden files and folders are passed over. Links to files within `root` count as files; links to folders
    within it are not followed.

    Raises:
        DataError: no such folder, it cannot be listed, a link leads out of `root`, or a name is not UTF-8.
    """
    inside = os.path.realpath(root)
    files: list[str] = []
    pending = [folder]
    try:
        while pending:
            current = pending.pop()
            check_inside(root / current, inside)
            with os.scandir(root / current) as entries:
                for entry in entries:
                    path = f"{current}/{entry.name}".removeprefix("/")
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        check_inside(root / path, inside)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
                    elif entry.name.lower().endswith(suffixes) and entry.is_file():
                        check_encodable(path, str(root))
                        files.append(path)
    except OSError as error:
        raise _unlistable(error.filename or root, error) from error
    return sorted(files)


def _unlistable(folder: str | Path, error: OSError) -> DataError:
    return DataError(f"{folder}: cannot be listed ({error.strerror}); check the path and its permissions")


def relative_path(name: str, where: str) -> str:
    """`name` as a plain POSIX path below the root.

    Raises:
        DataError: it is empty, absolute or contains `..`.
    """
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or PureWindowsPath(name).is_absolute() or ".." in re.split(r"[/\\]", name)
    if unsafe or not path.parts:
        raise DataError(f"{where}: {name!r} is not a path below the data set's folder; name images relative to it")
    return path.as_posix()


def group_captions(
    rows: Iterable[CaptionRow],
    *,
    images: Set[str],
    place: str,
    skips: Skips,
    names: PhotoNames | None = None,
    unread: Set[str] = frozenset(),
) -> dict[str, list[str]]:
    """The captions of each of `images` that has some, in the order of the rows, each trimmed to one line.

    Captions of other images, empty ones and repeated rows are counted in `skips`, and so are images that have
    no caption. `place` names where the images were looked for.

    Args:
        names: finds photos that are written a little differently; None knows exact names alone.
        unread: photos of formats that are not read.

    Raises:
        DataError: a row's path is unsafe, or its caption is not Unicode text (a lone surrogate).
    """
    captions: dict[str, list[str]] = {}
    seen: set[tuple[str, str, str]] = set()
    renamed: dict[str, str] = {}
    unreadable = PhotoNames(names.root if names else None, unread)
    for row in rows:
        if row.image in images:
            image = row.image
        else:
            found = names.find(row.image) if names else None
            if found is not None and found != PurePosixPath(row.image).as_posix():
                renamed[row.image] = found
            image = found or _unknown_image(row, unreadable)
        caption = on_one_line(row.caption)
        check_encodable(caption, row.where)
        if image in unread:
            skips.add(f"captions of photos {of_unread_format(image)}", image)
        elif image not in images:
            skips.add(f"captions whose image is not in {place}", image)
        elif not caption:
            skips.add("empty captions", row.where)
        elif (image, row.number, caption) in seen:
            skips.add("repeated captions", row.where)
        else:
            seen.add((image, row.number, caption))
            captions.setdefault(image, []).append(caption)
    for name, found in renamed.items():
        skips.add("photos found under a slightly different name", f"{name} as {found}")
    for image in sorted(images - captions.keys()):
        skips.add("images without a caption", image)
    return captions


def on_one_line(caption: str) -> str:
    """The caption without line breaks and control characters, trimmed."""
    return _SPACES.sub(" ", caption).strip()


def of_unread_format(name: str) -> str:
    """Says of a photo that its format is not read, and what to install where that would help."""
    suffix = PurePosixPath(name).suffix.lower()
    plugin = "; pip install 'dpce[heic]' to read it" if suffix in (".heic", ".heif") else ""
    return f"of the format {suffix}, which is not read{plugin}"


def _unknown_image(row: CaptionRow, unread: PhotoNames) -> str:
    return unread.find(row.image) or relative_path(row.image, row.where)


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """See that splits can be drawn.

    Raises:
        ConfigError: the fractions are negative or leave nothing to train on.
    """
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ConfigError(
            f"val fraction {val_fraction} and test fraction {test_fraction}: "
            f"choose two fractions of at least 0 whose sum is below 1"
        )


def drawn_splits(images: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, str]:
    """A random split of each image; `val_fraction` and `test_fraction` of them, rounded down, are val and test."""
    shuffled = random.Random(seed).sample(images, len(images))
    # The nudge keeps 0.29 of 100 images, in binary 28.999..., at 29.
    val = int(len(images) * val_fraction + 1e-9)
    test = int(len(images) * test_fraction + 1e-9)
    names = ["val"] * val + ["test"] * test + ["train"] * (len(images) - val - test)
    return dict(zip(shuffled, names, strict=True))


def captioned_images(name: str, root: Path, images: Iterable[CaptionedImage], skips: Skips) -> CaptionedImages:
    """The data set of `images`, in their order.

    Raises:
        DataError: there are none.
    """
    ordered = tuple(images)
    if not ordered:
        reasons = "; ".join(skips.lines()) or "it holds no images"
        raise DataError(f"{root}: no image with a caption is left to read ({reasons})")
    return CaptionedImages(name=name, root=root, images=ordered, skipped=skips.lines())
