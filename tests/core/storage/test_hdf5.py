from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.storage.hdf5 import reading_hdf5, writing_hdf5


def _write(path: Path, rows: int) -> None:
    with writing_hdf5(path) as file:
        file["numbers"] = np.arange(rows)


def test_a_full_disk_leaves_the_old_file_and_the_interpreter_alive(tmp_path: Path) -> None:
    """A limit on the file size replaces the full disk: the kernel refuses the write in the same way."""
    path = tmp_path / "test.h5"
    _write(path, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WorkspaceError, match=r"test\.h5: cannot be written \(File too large\); free space"):
            _write(path, 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with reading_hdf5(path) as file:
        assert file["numbers"][:].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["test.h5"]
