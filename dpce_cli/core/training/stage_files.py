"""The models that a stage keeps: the last state, the best model, and states of the last epochs."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from dpce_cli.core.storage.files import replacing
from dpce_cli.core.storage.locks import exclusive


class StageFiles:
    """The files of a stage, but for its journal.

    An epoch's file is another name of what was last.pt at its end. Copied over last.pt, it takes the run back there.
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
        """The epochs' files, in the order in which they were written."""
        return sorted(self.folder.glob("epoch-*.pt"), key=lambda path: path.stat().st_mtime_ns)

    def existing(self) -> list[Path]:
        """Those that are there."""
        return [path for path in (self.last, self.best, self.curves) if path.is_file()] + self.epochs()

    def keep_last(self, epoch: int, keep: int) -> None:
        """Keep last.pt as that of `epoch` (from 1), and the files of the `keep` epochs that were written last.

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
