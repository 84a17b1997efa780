"""Deleting what earlier preparations of a data set left in its folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from dpce_cli.core.storage.locks import is_held
from dpce_cli.core.workspace.dataset import read_about, stated_folder

_FILES = re.compile(r"(images|vocabulary|splits)(-[0-9a-f]{12})?\.jsonl?")
"""Of dpce 0.2.0 without a hash."""
_PHOTOS = re.compile(r"photos-[0-9a-f]{12}")
_STAMPED_PHOTOS = {"photos": "scenes.json", "images": "resized.json"}
"""Folders of photos that earlier versions drew and resized, and the file by which they are known."""
_LOCKS = ("*/stage?/lock", "*/stage?/.*.lock", "*/cache/.*.lock", "*/features/.*.lock")


def remove_leftovers(workspace: Path, name: str) -> None:
    """Delete files and photos in the folder of data set `name` that no data set of the workspace uses.

    Photos stay until the next time as long as a command that may be reading them trains, caches or extracts.
    """
    folder = workspace / name
    kept = {value for value in read_about(folder).values() if isinstance(value, str)}
    for path in folder.iterdir():
        if _FILES.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
    photos = [path for path in folder.iterdir() if _PHOTOS.fullmatch(path.name)]
    photos += [folder / old for old, stamp in _STAMPED_PHOTOS.items() if (folder / old / stamp).is_file()]
    roots = {stated_folder(other.parent, "root") for other in workspace.glob("*/dataset.json")}
    used = {Path(root).resolve() for root in roots if root}
    unused = [path for path in photos if path.resolve() not in used]
    if unused and not any(is_held(lock) for pattern in _LOCKS for lock in workspace.glob(pattern)):
        for path in unused:
            shutil.rmtree(path, ignore_errors=True)
