from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.storage.rows import open_or_resume, partial_path, read_meta, read_store
from tests.core.gloo import FORKS

LAYOUT: dict[str, Any] = {
    "arrays": {"plain": ((6, 3), "float16"), "valid": ((6,), "uint8")},
    "constants": {"names": ["a dog", "ein Hündchen", "子犬 🐶"], "owners": np.array([0, 0, 1])},
    "meta": {"checkpoint": "abc", "size": (224, 224)},
}
ROWS = np.arange(18, dtype=np.float32).reshape(6, 3)


def fill(path: Path) -> None:
    with open_or_resume(path, **LAYOUT) as store:
        store.append(plain=ROWS[store.done("plain") :])
        store.append(valid=np.ones(6 - store.done("valid")))
        store.finish()


def test_a_complete_store_is_read_as_it_was_written(tmp_path: Path) -> None:
    fill(tmp_path / "cache" / "test.h5")
    store = read_store(tmp_path / "cache" / "test.h5", remedy="dpce x")
    assert sorted(os.listdir(tmp_path / "cache")) == [".test.h5.lock", "test.h5"]
    assert set(store.arrays) == {"plain", "valid", "owners"}
    assert store.arrays["plain"].dtype == np.float16
    assert store.arrays["plain"].tolist() == ROWS.tolist()
    assert store.arrays["owners"].tolist() == [0, 0, 1]
    assert store.texts == {"names": ("a dog", "ein Hündchen", "子犬 🐶")}
    assert store.meta == {"checkpoint": "abc", "size": [224, 224]}


def test_an_unfinished_store_is_continued_where_it_stopped(tmp_path: Path) -> None:
    fill(tmp_path / "whole.h5")
    with open_or_resume(tmp_path / "test.h5", **LAYOUT) as store:
        store.append(plain=ROWS[:2])
        store.append(valid=np.ones(1))
    assert not (tmp_path / "test.h5").exists()
    with open_or_resume(tmp_path / "test.h5", **LAYOUT) as store:
        assert (store.done("plain"), store.done("valid")) == (2, 1)
    fill(tmp_path / "test.h5")
    assert (tmp_path / "test.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_full_store_that_was_not_renamed_is_only_renamed(tmp_path: Path) -> None:
    with open_or_resume(tmp_path / "test.h5", **LAYOUT) as store:
        store.append(plain=ROWS)
        store.append(valid=np.ones(6))
    fill(tmp_path / "test.h5")
    assert read_store(tmp_path / "test.h5", remedy="").arrays["plain"].tolist() == ROWS.tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"meta": {"checkpoint": "other"}},
        {"arrays": {"plain": ((6, 3), "float32"), "valid": ((6,), "uint8")}},
        {"constants": {**LAYOUT["constants"], "names": ["a cat", "ein Hündchen", "子犬 🐶"]}},
        {"constants": {**LAYOUT["constants"], "owners": np.array([0, 1, 1])}},
    ],
)
def test_a_store_with_other_arguments_is_begun_again(tmp_path: Path, change: dict[str, Any]) -> None:
    with open_or_resume(tmp_path / "test.h5", **LAYOUT) as store:
        store.append(plain=ROWS[:2])
    with open_or_resume(tmp_path / "test.h5", **LAYOUT | change) as store:
        assert store.done("plain") == 0
        store.append(plain=ROWS[:1])
    with open_or_resume(tmp_path / "test.h5", **LAYOUT | change) as store:
        assert store.done("plain") == 1


@pytest.mark.parametrize("kept", [0, 100, 3000])
def test_a_damaged_partial_store_is_begun_again(tmp_path: Path, kept: int) -> None:
    with open_or_resume(tmp_path / "test.h5", **LAYOUT) as store:
        store.append(plain=ROWS[:2])
    os.truncate(tmp_path / "test.h5.partial", kept)
    with open_or_resume(tmp_path / "test.h5", **LAYOUT) as store:
        assert store.done("plain") == 0


def test_an_array_without_rows_is_whole_from_the_start(tmp_path: Path) -> None:
    empty: dict[str, list[str]] = {"names": []}
    with open_or_resume(tmp_path / "x.h5", arrays={"a": ((0, 4), "float32")}, constants=empty, meta={}) as store:
        store.finish()
    store_read = read_store(tmp_path / "x.h5", remedy="")
    assert store_read.arrays["a"].shape == (0, 4)
    assert store_read.texts == {"names": ()}


@pytest.mark.parametrize("rows", [ROWS[:, :2], ROWS[0], np.zeros((7, 3))])
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, rows: np.ndarray[Any, Any]) -> None:
    with (
        open_or_resume(tmp_path / "test.h5", **LAYOUT) as store,
        pytest.raises(ValueError, match=r"do not fit \(6, 3\)"),
    ):
        store.append(plain=rows)


def test_a_store_with_missing_rows_is_not_renamed(tmp_path: Path) -> None:
    with open_or_resume(tmp_path / "test.h5", **LAYOUT) as store:
        store.append(plain=ROWS)
        with pytest.raises(ValueError, match="valid has 0 of 6 rows"):
            store.finish()
    assert not (tmp_path / "test.h5").exists()


def test_an_error_inside_the_block_is_not_reported_as_a_failure_to_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_or_resume(tmp_path / "test.h5", **LAYOUT):
        (tmp_path / "missing.jpg").read_bytes()


def _hold(path: Path, connection: Connection) -> None:
    """Have a store open until the connection is closed."""
    with open_or_resume(path, **LAYOUT):
        connection.send("open")
        with suppress(EOFError):
            connection.recv()


def test_a_second_writer_of_a_store_is_refused(tmp_path: Path) -> None:
    connection, other = FORKS.Pipe()
    first = FORKS.Process(target=_hold, args=(tmp_path / "test.h5", other))
    first.start()
    other.close()
    assert connection.recv() == "open"
    expected = f"{tmp_path}: another process is writing test.h5; wait for it, or stop it"
    with pytest.raises(WorkspaceError, match=re.escape(expected)):
        fill(tmp_path / "test.h5")
    connection.close()
    first.join()
    fill(tmp_path / "test.h5")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_written_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "lockf", fail)
    monkeypatch.setattr(fcntl, "flock", fail)
    fill(tmp_path / "test.h5")
    assert read_store(tmp_path / "test.h5", remedy="").arrays["plain"].tolist() == ROWS.tolist()


def test_a_lock_is_not_inherited_by_worker_processes(tmp_path: Path) -> None:
    with open_or_resume(tmp_path / "test.h5", **LAYOUT):
        orphan = subprocess.Popen(["sleep", "60"], close_fds=False)
    fill(tmp_path / "test.h5")
    orphan.kill()
    orphan.wait()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(WorkspaceError, match=r"file/\.test\.h5\.lock: cannot be written .*check the path, then run"),
        open_or_resume(tmp_path / "file" / "test.h5", **LAYOUT),
    ):
        pass


def test_a_store_that_the_disk_cannot_hold_is_refused_before_any_work(tmp_path: Path) -> None:
    huge = {"a": ((10**9, 10**6), "float32")}
    with (
        pytest.raises(WorkspaceError, match=r"needs 4000000\.00 GB, but .*free space"),
        open_or_resume(tmp_path / "test.h5", arrays=huge, constants={}, meta={}),
    ):
        pass
    assert os.listdir(tmp_path) == [".test.h5.lock"]


def _fill_up(path: Path, sender: Connection) -> None:
    """Send the error of a write that exceeds a limit on the file size: the kernel reports a full disk the same way."""
    with open_or_resume(path, arrays={"a": ((50_000, 8), "float32")}, constants={}, meta={}) as store:
        store.append(a=np.full((10, 8), 7.0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
        try:
            store.append(a=np.full((40_000, 8), 8.0))
        except WorkspaceError as error:
            sender.send(str(error))


def test_a_write_that_fails_halfway_leaves_a_store_that_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "test.h5"
    receiver, sender = FORKS.Pipe(duplex=False)
    writer = FORKS.Process(target=_fill_up, args=(path, sender))
    writer.start()
    assert receiver.recv().startswith(f"{path}: cannot be written (File too large); free space")
    writer.join()
    with open_or_resume(path, arrays={"a": ((50_000, 8), "float32")}, constants={}, meta={}) as store:
        assert store.done("a") == 10
        store.append(a=np.full((49_990, 8), 9.0))
        store.finish()
    rows = read_store(path, remedy="").arrays["a"]
    assert (rows[:10] == 7).all()
    assert (rows[10:] == 9).all()


def _fill_slowly(path: Path, sender: Connection) -> None:
    """Send how many rows are finished already, and write the others."""
    arrays = {"plain": ((900, 4_000), "float16"), "mirrored": ((900, 4_000), "float32")}
    with open_or_resume(path, arrays=arrays, constants={"names": ["x"] * 900}, meta={}) as store:
        sender.send(store.done("plain"))
        for name in arrays:
            while (start := store.done(name)) < 900:
                rows = np.arange(start, min(start + 7, 900))
                store.append(**{name: np.sin(rows[:, None] + np.arange(4_000))})
                time.sleep(0.002)
        store.finish()


@contextmanager
def _filling(path: Path) -> Iterator[tuple[BaseProcess, int]]:
    """A process that fills a store, and the number of rows that it found."""
    receiver, sender = FORKS.Pipe(duplex=False)
    writer = FORKS.Process(target=_fill_slowly, args=(path, sender))
    writer.start()
    yield writer, receiver.recv()
    writer.join()


def test_a_store_whose_writer_is_killed_again_and_again_ends_up_the_same(tmp_path: Path) -> None:
    with _filling(tmp_path / "whole.h5"):
        pass
    chance = random.Random(0)
    done = []
    for _ in range(5):
        with _filling(tmp_path / "test.h5") as (writer, found):
            done.append(found)
            time.sleep(chance.uniform(0.01, 0.15))
            writer.kill()
    assert done == sorted(done)
    assert done[-1] > 0
    assert not (tmp_path / "test.h5").exists()
    with _filling(tmp_path / "test.h5"):
        pass
    assert (tmp_path / "test.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_missing_store_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"test\.h5: not found; run `dpce x`"):
        read_store(tmp_path / "test.h5", remedy="dpce x")


@pytest.mark.parametrize("kept", [0, 100, 3000])
def test_a_store_that_was_cut_short_is_damaged(tmp_path: Path, kept: int) -> None:
    fill(tmp_path / "test.h5")
    os.truncate(tmp_path / "test.h5", kept)
    with pytest.raises(WorkspaceError, match=r"test\.h5: damaged .* run `dpce x` again"):
        read_store(tmp_path / "test.h5", remedy="dpce x")


@contextmanager
def _no_more_open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_good_store_is_not_called_damaged_where_too_many_files_are_open(tmp_path: Path) -> None:
    path = tmp_path / "test.h5"
    fill(path)
    expected = rf"{path}: cannot be read \(Too many open files\); allow more open files with `ulimit -n`"
    with _no_more_open_files():
        with pytest.raises(WorkspaceError, match=expected):
            read_store(path, remedy="dpce x")
        with pytest.raises(WorkspaceError, match=expected):
            read_meta(path)
    assert read_store(path, remedy="dpce x").arrays["plain"].tolist() == ROWS.tolist()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_partial_store_that_cannot_be_read_now_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "test.h5"
    with open_or_resume(path, **LAYOUT) as store:
        store.append(plain=ROWS[:2])
    before = partial_path(path).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "not now")

    with monkeypatch.context() as patched:
        patched.setattr(h5py, "File", fail)
        with pytest.raises(WorkspaceError, match=r"test\.h5\.partial: cannot be read"), open_or_resume(path, **LAYOUT):
            pass
    assert partial_path(path).read_bytes() == before
    with open_or_resume(path, **LAYOUT) as store:
        assert store.done("plain") == 2


def test_an_hdf5_file_of_another_program_is_damaged(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "test.h5", "w") as file:
        file["plain"] = ROWS
    with pytest.raises(WorkspaceError, match=r"test\.h5: damaged"):
        read_store(tmp_path / "test.h5", remedy="dpce x")


def test_a_store_with_missing_rows_is_incomplete(tmp_path: Path) -> None:
    with open_or_resume(tmp_path / "test.h5", **LAYOUT) as store:
        store.append(plain=ROWS[:4])
    (tmp_path / "test.h5.partial").rename(tmp_path / "test.h5")
    with pytest.raises(WorkspaceError, match=r"incomplete \(plain 4/6, valid 0/6\); run `dpce x` again"):
        read_store(tmp_path / "test.h5", remedy="dpce x")


def test_every_flipped_bit_of_a_store_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "test.h5"
    fill(path)
    whole, as_written = path.read_bytes(), read_store(path, remedy="")
    chance = random.Random(0)
    with h5py.File(path) as file:
        rows = file["plain"].id.get_offset()
    found = 0
    for byte in [*range(rows, rows + 36), *chance.sample(range(len(whole)), 300)]:
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            store = read_store(path, remedy="")
        except WorkspaceError:
            found += 1
        else:
            assert store.texts == as_written.texts
            assert store.meta == as_written.meta
            for name, values in as_written.arrays.items():
                assert np.array_equal(store.arrays[name], values)
    assert found >= 36


def test_arrays_that_are_stored_in_another_file_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 100)
    layouts: dict[str, Callable[[h5py.File], object]] = {
        "external storage": lambda file: file.create_dataset("plain", (6, 3), "float16", external=[(secret, 0, 36)]),
        "an external link": lambda file: file.__setitem__("plain", h5py.ExternalLink("other.h5", "/plain")),
        "a soft link": lambda file: file.__setitem__("plain", h5py.SoftLink("/names")),
        "a virtual dataset": lambda file: file.create_virtual_dataset("plain", _virtual(tmp_path / "other.h5")),
    }
    fill(tmp_path / "other.h5")
    for kind, add in layouts.items():
        path = tmp_path / f"{kind}.h5"
        fill(path)
        with h5py.File(path, "r+") as file:
            del file["plain"]
            add(file)
        with pytest.raises(WorkspaceError, match=r"damaged \('plain' (is a link to|is stored in another file)"):
            read_store(path, remedy="")


def _virtual(source: Path) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout((6, 3), "float16")
    layout[:] = h5py.VirtualSource(source, "plain", (6, 3))
    return layout
