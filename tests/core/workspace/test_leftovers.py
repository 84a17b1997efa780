from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpce_cli.core.storage.locks import exclusive
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import prepare, tiny_config
from tests.core.workspace.test_workspace import IMAGES


def _photos(folder: Path, stamp: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "photo.jpg").write_text("photo")
    if stamp:
        (folder / stamp).write_text("{}")
    return folder


def _prepare(workspace: Workspace, root: Path) -> None:
    prepare(workspace, root, IMAGES, tiny_config(None))


@contextmanager
def _lock_held_elsewhere(path: Path) -> Iterator[None]:
    ends = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(path, *ends))
    process.start()
    assert ends[0].recv() == "held"
    yield
    ends[0].send("done")
    process.join()


def _hold(path: Path, unused: object, end: object) -> None:
    with exclusive(path, "busy"):
        end.send("held")  # type: ignore[attr-defined]
        end.recv()  # type: ignore[attr-defined]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def test_photos_of_an_earlier_preparation_are_deleted(workspace: Workspace) -> None:
    old = _photos(workspace.root / "tiny" / f"photos-{12 * '0'}")
    _prepare(workspace, old)
    assert old.is_dir()
    new = _photos(workspace.root / "tiny" / f"photos-{12 * '1'}")
    _prepare(workspace, new)
    assert not old.exists()
    assert new.is_dir()


@pytest.mark.parametrize(
    "lock",
    [
        "tiny/stage1/lock",
        "tiny/cache/.train-abc.h5.lock",
        "tiny/features/.val.h5.lock",
        "other/stage2/lock",
        "tiny/stage1/.bank.h5.lock",
    ],
)
def test_photos_that_a_command_may_be_reading_stay_until_the_next_time(workspace: Workspace, lock: str) -> None:
    old = _photos(workspace.root / "tiny" / f"photos-{12 * '0'}")
    _prepare(workspace, old)
    new = _photos(workspace.root / "tiny" / f"photos-{12 * '1'}")
    with _lock_held_elsewhere(workspace.root / lock):
        _prepare(workspace, new)
        assert old.is_dir()
    _prepare(workspace, new)
    assert not old.exists()


def test_photos_that_another_data_set_uses_stay(workspace: Workspace) -> None:
    old, new = (_photos(workspace.root / "tiny" / f"photos-{12 * digit}") for digit in "01")
    other = workspace.root / "other" / "dataset.json"
    other.parent.mkdir()
    other.write_text(json.dumps({"root": str(old)}))
    _prepare(workspace, new)
    assert old.is_dir()


def test_what_dpce_0_2_0_left_is_deleted_and_what_a_person_put_there_is_not(workspace: Workspace) -> None:
    folder = workspace.root / "tiny"
    ours = [_photos(folder / "photos", "scenes.json"), _photos(folder / "images", "resized.json")]
    theirs = [_photos(folder / "photos-2024"), _photos(folder / "pictures", "scenes.json")]
    for name in ("images.jsonl", "vocabulary.json", "splits.json", "splits-0123456789ab.json"):
        (folder / name).write_text("")
    for name in ("notes.json", "images.json.bak"):
        (folder / name).write_text("mine")
    _prepare(workspace, Path("/photos"))
    assert not any(path.exists() for path in ours)
    assert all((path / "photo.jpg").is_file() for path in theirs)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names - {"notes.json", "images.json.bak", "dataset.json"} == {
        path.name for stem in ("images", "vocabulary") for path in folder.glob(f"{stem}-*.json*")
    }


def test_photos_without_the_stamp_of_dpce_stay(workspace: Workspace) -> None:
    theirs = [_photos(workspace.root / "tiny" / name) for name in ("photos", "images")]
    _prepare(workspace, Path("/photos"))
    assert all(path.is_dir() for path in theirs)
