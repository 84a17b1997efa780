"""Make small copies of a data set's photos, which are decoded much faster."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.config import ImageConfig
from dpce_cli.core.data.contents import UNREADABLE, photo_content
from dpce_cli.core.data.loading import read_views
from dpce_cli.core.data.readers.reading import Skips
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages
from dpce_cli.core.data.shards import open_photo
from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.storage.files import replacing

_BATCH = 32
_COPIED = "copied.jsonl"


def resize_images(
    captioned: CaptionedImages, parent: Path, config: ImageConfig, *, workers: int, reporter: Reporter
) -> CaptionedImages:
    """Resize the photos as `config` says into a folder of `parent`, and return the data set of the copies.

    The copies have the same paths. The folder's name depends on the data set's root and the sizes, so copies of other
    sizes stay.

    `.jpg` and `.jpeg` files become JPEGs of quality 95, all others PNGs; a photo that is small enough is copied as it
    is. The file `copied.jsonl` lists the content of each photo that was copied: the next call with the same root and
    sizes continues an interrupted one, and resizes photos again that were replaced. Photos that cannot be read are left
    out and counted in `skipped`.

    Raises:
        DataError: none of the photos can be read.
        WorkspaceError: `parent` cannot be written.
    """
    about = {"root": str(captioned.root.resolve()), "resize": config.resize, "squash": config.squash}
    folder = parent / f"photos-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]}"
    contents = {image.path: photo_content(captioned.root / image.path, image.extent) for image in captioned.images}
    copied = _read_copied(folder)
    pending = tuple(
        image
        for image in captioned.images
        if contents[image.path] not in (UNREADABLE, copied.get(image.path)) or not (folder / image.path).is_file()
    )
    skips, bad = Skips(), set[str]()
    count = len(captioned.images)
    with reporter.track("resizing photos", count, count - len(pending)) as advance:
        write = _WriteResized(captioned.root, folder, pending, config)
        start = 0
        for positions, failures, problems in read_views(
            captioned.root, pending, write, batch_size=_BATCH, workers=workers
        ):
            if failed := failures[failures != 0].tolist():
                raise _cannot_be_written(folder, os.strerror(failed[0]))
            for problem in problems:
                skips.add("photos that cannot be read", problem.partition("; ")[0])
            batch = pending[start : start + _BATCH]
            written = [pending[position].path for position in positions]
            if written:
                _add_copied(folder, {path: contents[path] for path in written})
            bad |= {image.path for image in batch}.difference(written)
            start += len(batch)
            advance(len(batch))
    readable = tuple(dataclasses.replace(image, extent=None) for image in captioned.images if image.path not in bad)
    if not readable:
        raise DataError(f"{captioned.root}: none of the photos can be read; put them there and run again")
    return dataclasses.replace(
        captioned, root=folder, source=captioned.root, images=readable, skipped=(*captioned.skipped, *skips.lines())
    )


@dataclass(frozen=True)
class _WriteResized:
    """Writes the copy of `images[position]`; returns 0 or the number of a system error."""

    root: Path
    folder: Path
    images: tuple[CaptionedImage, ...]
    config: ImageConfig

    def __call__(self, image: Image.Image, position: int) -> Tensor:
        photo, side = self.images[position], self.config.resize
        ratio = side / min(image.size)
        size = (side, side) if self.config.squash else (round(image.width * ratio), round(image.height * ratio))
        try:
            with replacing(self.folder / photo.path) as temporary:
                if ratio >= 1 and not self.config.squash:
                    with open_photo(self.root / photo.path, photo.extent) as source, open(temporary, "wb") as target:
                        shutil.copyfileobj(source, target)
                else:
                    small = image.resize(size, Image.Resampling.BICUBIC)
                    jpeg = photo.path.lower().endswith((".jpg", ".jpeg"))
                    small.save(temporary, "JPEG" if jpeg else "PNG", quality=95)
        except WorkspaceError as error:
            return torch.tensor(getattr(error.__cause__, "errno", None) or errno.EIO)
        return torch.tensor(0)


def _read_copied(folder: Path) -> dict[str, str]:
    """For each copy in `folder`, by path, the content of the photo that it was made from."""
    try:
        lines = (folder / _COPIED).read_bytes().splitlines()
    except OSError:
        return {}
    copied: dict[str, str] = {}
    for line in lines:
        with suppress(ValueError, TypeError, RecursionError):  # the process was killed while it wrote this line
            path, content = json.loads(line)
            copied[path] = content
    return copied


def _add_copied(folder: Path, contents: Mapping[str, str]) -> None:
    lines = "".join(f"\n{json.dumps(item)}" for item in contents.items())
    try:
        with open(folder / _COPIED, "a", encoding="utf-8") as file:
            file.write(lines)
    except OSError as error:
        raise _cannot_be_written(folder, error.strerror or str(error)) from error


def _cannot_be_written(folder: Path, reason: str) -> WorkspaceError:
    return WorkspaceError(
        f"{folder}: cannot be written ({reason}); free space or choose another --workspace, then run again to continue "
        "where it stopped"
    )
