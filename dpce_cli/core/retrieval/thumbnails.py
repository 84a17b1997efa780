"""Thumbnails for contact sheets and pages, and why some photos cannot be shown."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dpce_cli.core.data.images import load_image
from dpce_cli.core.errors import DataError
from dpce_cli.core.progress import Reporter


class Thumbnails:
    """Makes thumbnails. Warns once about each photo that cannot be shown."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.problems: dict[Path, str] = {}
        """The photos that could not be shown, each with the reason."""

    def read(self, path: Path, size: int, root: Path | None = None) -> Image.Image | str:
        """The whole photo without metadata, `size` pixels on its longer side; or the reason why it cannot be shown.

        Args:
            root: folder that must contain the photo; None: any folder.
        """
        try:
            if root and not path.resolve().is_relative_to(root.resolve()):
                raise DataError(f"{path}: lies outside of {root}")
            photo = load_image(path)
        except DataError as error:
            reason = str(error).removeprefix(f"{path}: ").partition("; ")[0]
            if path not in self.problems:
                self.problems[path] = reason
                self.reporter.warn(f"{path}: {reason}; a grey tile is drawn instead")
            return reason
        scale = size / max(photo.size)
        width, height = (max(1, round(side * scale)) for side in photo.size)
        thumbnail = Image.new("RGB", (width, height))  # a copy of the photo would keep its comments
        thumbnail.paste(photo.resize((width, height), Image.Resampling.LANCZOS))
        return thumbnail
