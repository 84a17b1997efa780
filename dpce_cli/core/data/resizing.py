"""Small copies of a data set's photos, which are decoded in a fraction of the time."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.config import ImageConfig
from dpce_cli.core.data.loading import read_views
from dpce_cli.core.data.readers.reading import Skips
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages
from dpce_cli.core.data.shards import open_photo, shard_of
from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.storage.files import replacing

_BATCH = 32


def resize_images(
    captioned: CaptionedImages, parent: Path, config: ImageConfig, *, workers: int, reporter: Reporter
) -> CaptionedImages:
    """The data set with its photos in a folder of `parent`: same paths, separate files, resized as `config` says.

    The folder's name depends on root and sizes, so that photos of another preparation stay as long as it is current.

    What `.jpg` and `.jpeg` name becomes a JPEG of quality 95, anything else a PNG; a photo that is small enough is
    copied. An interrupted call is continued by the next one with the same root and sizes, and a photo that is newer
    than its copy is resized again. Photos that cannot be read are left out and counted in `skipped`.

    Raises:
        DataError: none of the photos can be read.
        WorkspaceError: `parent` cannot be written.
    """
    about = {"root": str(captioned.root.resolve()), "resize": config.resize, "squash": config.squash}
    folder = parent / f"photos-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]}"
    pending = tuple(
        image for image in captioned.images if _time(captioned.root / image.path) >= _time(folder / image.path)
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
                raise WorkspaceError(
                    f"{folder}: cannot be written ({os.strerror(failed[0])}); free space or choose another "
                    "--workspace, then run again to continue where it stopped"
                )
            for problem in problems:
                skips.add("photos that cannot be read", problem.partition("; ")[0])
            batch = pending[start : start + _BATCH]
            bad |= {image.path for image in batch} - {pending[position].path for position in positions}
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
    """Writes the copy of the photo at a position of `images`; the result is 0 or the number of a system error."""

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


def _time(path: Path) -> float:
    """When a photo's file, or the shard that holds it, was written; never, if it is not there."""
    try:
        return os.stat(shard_of(path) or path).st_mtime
    except OSError:
        return float("-inf")
