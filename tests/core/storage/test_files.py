from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.storage.files import replacing, replacing_folder, write_json


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file"]


def write_half_and_raise(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_half_and_raise(path, error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_a_workspace_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(WorkspaceError, match=r"file: cannot be written \(No space left on device\); free space or"):
        write_half_and_raise(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_a_workspace_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write_json(tmp_path / "file" / "below.json", {})


def test_temporary_files_of_killed_processes_are_deleted_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    script = "import os, sys; from dpce_cli.core.storage.files import replacing\n"
    script += "with replacing(__import__('pathlib').Path(sys.argv[1])) as path: path.touch(); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "last.pt"], check=False)
    assert killed.returncode == -9
    (leftover,) = os.listdir(tmp_path)
    host = platform.node()
    running = f".best.pt.{host}.{os.getppid()}.dpce.tmp"
    own = f".best.pt.{host}.{os.getpid()}.dpce.tmp"  # of an earlier process, in a container of the same name
    elsewhere = f".best.pt.other-{host}.1.dpce.tmp"
    for name in (running, own, elsewhere, ".mine.tmp"):
        (tmp_path / name).touch()
    for name in (f".last.pt.other-{host}.2.dpce.tmp", ".mine.tmp"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f".model{own}").mkdir()
    (tmp_path / f".model{own}" / "config.json").touch()
    write_json(tmp_path / "a.json", {})
    assert leftover.startswith(".last.pt.")
    assert sorted(os.listdir(tmp_path)) == sorted(["a.json", running, elsewhere, ".mine.tmp"])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_temporary_files_of_processes_that_ended_unnoticed_are_deleted(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:  # its end is asked for when the block is left
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        left = tmp_path / f".a.json.{platform.node()}.{ended.pid}.dpce.tmp"
        left.touch()
        with replacing(tmp_path / "b.json") as temporary:
            temporary.write_text("")
    assert not left.exists()


def test_a_folder_is_replaced_as_a_whole_when_the_block_ends_well(tmp_path: Path) -> None:
    folder = tmp_path / "new folder" / "model"
    for names in (["a", "b"], ["c"]):
        with replacing_folder(folder) as temporary:
            for name in names:
                (temporary / name).touch()
        assert sorted(os.listdir(folder)) == names
    assert os.listdir(folder.parent) == ["model"]


def test_a_folder_that_cannot_be_put_in_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    rename = os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if (Path(source) / "new").exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, target)

    def replace_by_new() -> None:
        with replacing_folder(folder) as temporary:
            (temporary / "new").touch()

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(WorkspaceError, match=r"model: cannot be written \(Permission denied\)"):
        replace_by_new()
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(folder) == ["old"]


def test_json_is_written_as_readable_utf_8(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"dog": "Hündchen 🐶"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Hündchen 🐶" in text
    assert json.loads(text) == {"dog": "Hündchen 🐶"}


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
