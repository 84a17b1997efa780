"""The checkpoints of a stage: last.pt, best.pt and those of the last epochs."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from dpce_cli.core.storage.files import replacing
from dpce_cli.core.storage.locks import exclusive


class StageFiles:
    """The files of a stage, without its log.

    The file of an epoch is last.pt as it was at the end of the epoch. To go back there, copy it over last.pt.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last, self.best, self.curves = folder / "last.pt", folder / "best.pt", folder / "curves.png"

    def claim(self) -> AbstractContextManager[None]:
        """Keep other processes from training here during the block.

        Raises:
            WorkspaceError: another process trains here, or the folder cannot be written.
        """
        busy = "another process trains this stage; wait for it, or stop it and run again"
        return exclusive(self.folder / "lock", busy)

    def epochs(self) -> list[Path]:
        """The files of the epochs, in the order in which they were written."""
        return sorted(self.folder.glob("epoch-*.pt"), key=lambda path: path.stat().st_mtime_ns)

    def existing(self) -> list[Path]:
        """The files that exist."""
        return [path for path in (self.last, self.best, self.curves) if path.is_file()] + self.epochs()

    def keep_last(self, epoch: int, keep: int) -> None:
        """Keep last.pt as the file of `epoch` (from 1), and remove all but the newest `keep` of these files.

        Raises:
            WorkspaceError: the folder cannot be written.
        """
        with replacing(self.folder / f"epoch-{epoch}.pt") as temporary:
            try:
                os.link(self.last, temporary)
            except OSError:  # not every file system has links
                shutil.copyfile(self.last, temporary)
        for old in self.epochs()[:-keep]:
            old.unlink()

    def remove(self) -> None:
        for path in self.existing():
            path.unlink()
