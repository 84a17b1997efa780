"""What the readers of published JSON annotations have in common: checked values, and photos found as listed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from dpce_cli.core.data.readers.reading import (
    CaptionRow,
    Skips,
    captioned_images,
    group_captions,
    read_text,
    relative_path,
)
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages
from dpce_cli.core.errors import DataError

T = TypeVar("T")

# Lists and objects in a JSON file; MSCOCO's have 3 million. An empty one takes 64 bytes, and 3 in the file.
_MOST_RECORDS = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """An image as a file lists it; the photo may be missing."""

    image_id: str
    path: str
    """Relative to the data set's root, as listed."""
    split: str
    captions: tuple[str, ...]
    where: str
    """File and place in it, for messages."""
    identity: str | None = None


def read_json(path: Path, keys: Set[str], root: Path | None = None) -> Any:
    """What a JSON file holds, of each object only `keys`: the files have hundreds of megabytes of other things.

    Raises:
        DataError: the file cannot be read, or is not UTF-8, not JSON or far from any published file's size.
    """
    text = read_text(path, root)
    if text.count("[") + text.count("{") > _MOST_RECORDS:
        raise DataError(f"{path}: holds more than {_MOST_RECORDS:,} lists and objects; restore the published file")
    try:
        return json.loads(text, object_hook=lambda record: {key: record[key] for key in record if key in keys})
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: incomplete or damaged JSON ({error.msg}); fix the file or download it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not usable JSON ({error}); fix the file or download it again") from error


def value_of(record: Any, key: str, kind: type[T], where: str) -> T:
    """The value of `key`, of JSON type `kind`.

    Raises:
        DataError: `record` is no object, lacks the key, or the value has another type.
    """
    if not isinstance(record, dict) or type(record.get(key)) is not kind:
        names = {str: "a text", int: "a whole number", list: "a list"}
        raise DataError(f"{where}: needs {names[kind]} '{key}'; fix the file or download it again")
    value: T = record[key]
    return value


def texts_of(record: Any, key: str, where: str) -> tuple[str, ...]:
    """The value of `key`, a list of texts.

    Raises:
        DataError: it is something else.
    """
    texts = value_of(record, key, list, where)
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: '{key}' holds something that is not text; fix the file or download it again")
    return tuple(texts)


def found_images(
    name: str, root: Path, listed: Iterable[ListedImage], *, files: Set[str], place: str, skips: Skips
) -> CaptionedImages:
    """The data set of the listed images whose photos are among `files`, in the order of the list.

    Photos that are not there, images listed again in the same split, and empty captions are counted in `skips`.

    Args:
        files: paths of the photos, relative to `root`.
        place: names where they were looked for.

    Raises:
        DataError: an image in two splits or of two identities, two images with one id, an identity in two splits,
            an unsafe path, a caption that is not Unicode text, or nothing left to read.
    """
    kept: dict[str, ListedImage] = {}
    path_of_id: dict[str, str] = {}
    split_of_identity: dict[str, str] = {}
    missing = []
    for image in listed:
        path = image.path if image.path in files else relative_path(image.path, image.where)
        _agree(path_of_id, image.image_id, path, f"{image.where}: id {image.image_id}")
        if image.identity is not None:
            _agree(split_of_identity, image.identity, image.split, f"{image.where}: identity {image.identity}")
        if (earlier := kept.get(path)) is not None:
            for attribute in ("split", "identity"):
                if getattr(earlier, attribute) != getattr(image, attribute):
                    raise DataError(
                        f"{image.where}: {path!a} is listed with {attribute} {getattr(image, attribute)} and, at "
                        f"{earlier.where}, with {getattr(earlier, attribute)}; restore the published file"
                    )
            skips.add("images listed twice", path)
        elif path in files:
            kept[path] = image
        else:
            missing.append(path)
    _add_missing(missing, files - kept.keys(), place, skips)
    rows = (
        CaptionRow(image=path, caption=caption, number=str(number), where=image.where)
        for path, image in kept.items()
        for number, caption in enumerate(image.captions)
    )
    captions = group_captions(rows, images=kept.keys(), place=place, skips=skips)
    found = (
        CaptionedImage(
            image_id=image.image_id,
            path=path,
            split=image.split,
            captions=tuple(captions[path]),
            identity=image.identity,
        )
        for path, image in kept.items()
        if path in captions
    )
    return captioned_images(name, root, found, skips)


def _agree(known: dict[str, str], key: str, value: str, what: str) -> None:
    if known.setdefault(key, value) != value:
        raise DataError(f"{what} is of {known[key]!a} and of {value!a}; restore the published file")


def _add_missing(missing: list[str], unlisted: Set[str], place: str, skips: Skips) -> None:
    elsewhere = {PurePosixPath(path).stem: path for path in sorted(unlisted)} if missing else {}
    for path in missing:
        if (other := elsewhere.get(PurePosixPath(path).stem)) is not None:
            skips.add("photos in another folder or of another extension than listed", f"{path} as {other}")
        else:
            skips.add(f"photos that are not in {place}", path)
