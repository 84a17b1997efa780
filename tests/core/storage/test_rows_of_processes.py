from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.processes.collectives import rank, share, wait_for_all
from dpce_cli.core.storage.rows import open_or_resume, read_store
from tests.core.gloo import in_processes

ROWS = np.arange(77, dtype=np.float32).reshape(11, 7)
WORDS = [f"word {number}" for number in range(11)]


def _fill(path: Path, until: int, finish: bool) -> None:
    """Write at most `until` rows of this process's share."""
    arrays = {"rows": (ROWS.shape, "float32"), "squares": (ROWS.shape, "float32")}
    with open_or_resume(path, arrays=arrays, constants={"words": WORDS}, meta={"of": "a test"}) as store:
        for name, values in (("rows", ROWS), ("squares", ROWS**2)):
            for row in values[share(11)][store.done(name) :][:until]:
                assert finish or not store.done(name)
                store.append(**{name: row[None]})
        if finish:
            store.finish()


def _fill_and_be_interrupted_and_continue(path: Path) -> None:
    _fill(path, 1, False)
    wait_for_all()
    assert not path.exists()
    _fill(path, 11, True)
    assert path.exists()


@pytest.mark.slow
def test_three_processes_fill_the_same_store_as_one(tmp_path: Path) -> None:
    for name in ("one", "three"):
        (tmp_path / name).mkdir()
    _fill(tmp_path / "three" / "store.h5", 1, False)  # by one process, which three cannot continue
    _fill(tmp_path / "one" / "store.h5", 11, True)
    in_processes(3, _fill_and_be_interrupted_and_continue, tmp_path / "three" / "store.h5")

    one, three = (read_store(tmp_path / name / "store.h5", remedy="test") for name in ("one", "three"))
    assert one.texts == three.texts == {"words": tuple(WORDS)}
    assert one.meta == three.meta
    for name, expected in (("rows", ROWS), ("squares", ROWS**2)):
        assert np.array_equal(one.arrays[name], expected)
        assert np.array_equal(three.arrays[name], expected)
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == [".store.h5.lock", "store.h5"]


def _leave_rows_out(path: Path) -> None:
    with pytest.raises(ValueError, match="has 0 of 3 rows" if not rank() else "has 0 of 4 rows"):
        _fill_nothing(path)


def _fill_nothing(path: Path) -> None:
    arrays = {"rows": (ROWS.shape, "float32")}
    with open_or_resume(path, arrays=arrays, constants={}, meta={}) as store:
        store.finish()


@pytest.mark.slow
def test_a_store_is_not_renamed_if_a_process_has_missing_rows(tmp_path: Path) -> None:
    in_processes(3, _leave_rows_out, tmp_path / "store.h5")
    assert not (tmp_path / "store.h5").exists()


def test_a_store_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.h5"
    _fill(path, 11, True)
    with h5py.File(path) as file:
        end = file["squares"].id.get_offset() + file["squares"].nbytes
    path.write_bytes(path.read_bytes()[: end - 4])
    with pytest.raises(WorkspaceError, match=r"store\.h5: damaged \("):
        read_store(path, remedy="test")
