"""Finding the photo that a captions file means: names are often written a little differently than they are on disk."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Set
from functools import cached_property
from pathlib import Path, PurePosixPath


class PhotoNames:
    """The photos below a root, by the names that captions files use for them.

    Args:
        root: absolute paths below it are understood; None understands none.
        images: POSIX paths of the photos, relative to the root.
    """

    def __init__(self, root: Path | None, images: Set[str]) -> None:
        self.root, self.images = root, images

    def find(self, name: str) -> str | None:
        """The one photo that `name` can mean, with another case, separator, extension or folder, or absolute.

        A Mac stores an accent as a character of its own; such a name is the same name.

        None where there is no such photo, or more than one.
        """
        name = name.strip().replace("\\", "/")
        if self.root is not None and os.path.isabs(name):
            name = os.path.relpath(name, self.root)
        name = PurePosixPath(name).as_posix()
        if ".." in PurePosixPath(name).parts or os.path.isabs(name):
            return None
        if name in self.images:
            return name
        for form, images in self._by_form.items():
            found = images.get(form(name), ())
            if found:
                return found[0] if len(found) == 1 else None
        return None

    @cached_property
    def _by_form(self) -> dict[Callable[[str], str], dict[str, list[str]]]:
        """The photos by looser and looser forms of their names."""
        groups: dict[Callable[[str], str], dict[str, list[str]]] = {form: {} for form in (_path, _stem, _file)}
        for form, images in groups.items():
            for image in sorted(self.images):
                images.setdefault(form(image), []).append(image)
        return groups


def _path(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    return _path(PurePosixPath(name).with_suffix("").as_posix()) if PurePosixPath(name).name else ""


def _file(name: str) -> str:
    return _stem(PurePosixPath(name).name)
