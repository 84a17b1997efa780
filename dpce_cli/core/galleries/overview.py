"""What the galleries of a workspace hold."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dpce_cli.core.galleries.gallery import no_such_gallery, open_gallery
from dpce_cli.core.storage.locks import exclusive


@dataclass(frozen=True)
class GalleryState:
    """What a gallery holds, for an overview."""

    name: str
    kind: str
    items: int
    """That can be found."""
    pending: int
    """Whose embeddings are still to be computed."""
    problems: list[tuple[str, str]]
    """Path and reason of each item that cannot be embedded."""
    model: str
    roots: list[str]
    size: int
    """Bytes on the disk."""
    changed: float
    """Time of the last change, in seconds since 1970."""


def gallery_states(folder: Path) -> list[GalleryState]:
    """The galleries below a workspace's folder `galleries`, by name."""
    names = [path for path in sorted(folder.glob("*")) if (path / "current").is_file()]
    return [_state(path) for path in names]


def _state(folder: Path) -> GalleryState:
    with closing(open_gallery(folder)) as catalogue, catalogue.snapshot() as database:
        problems = database.execute(
            "SELECT roots.path, items.path, coalesce(items.problem, contents.problem) AS reason FROM items "
            "JOIN roots ON roots.id = root LEFT JOIN contents ON contents.id = content "
            "WHERE reason IS NOT NULL ORDER BY root, items.path"
        ).fetchall()
        ((items, embedded),) = database.execute(
            "SELECT count(*), count(row) FROM items LEFT JOIN contents ON contents.id = content"
        )
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
        about = catalogue.about
        return GalleryState(
            name=folder.name,
            kind=about.kind,
            items=embedded,
            pending=items - embedded - len(problems),
            problems=[
                (os.fsdecode(path if about.kind == "sentences" else os.path.join(root, path)), reason)
                for root, path, reason in problems
            ],
            model=about.model_name,
            roots=[str(root) for root in catalogue.roots()],
            size=sum(file.st_size for file in files),
            changed=max(file.st_mtime for file in files),
        )


def remove_gallery(folder: Path) -> None:
    """Delete a gallery; the photos and sentences that it was made from stay.

    Raises:
        WorkspaceError: there is no such gallery, or it is being indexed.
    """
    if not (folder / "current").is_file():
        raise no_such_gallery(folder)
    with exclusive(folder / "lock", "a process indexes this gallery; wait for it, or stop it"):
        (folder / "current").unlink()
        shutil.rmtree(folder, ignore_errors=True)
