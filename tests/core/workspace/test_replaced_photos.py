from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dpce_cli.core.data.shards import extent, members
from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.extraction import extract_features
from dpce_cli.core.workspace import replaced_photos
from dpce_cli.core.workspace.artefacts import load_best, load_features
from dpce_cli.core.workspace.dataset import PreparedImage
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.tiny import Recorder, prepare, write_photo
from tests.tars import write_tar


def _extract(workspace: Workspace) -> None:
    dataset = workspace.load_dataset()
    extract_features(
        workspace, dataset, load_best(workspace, dataset, None), split="val", device=torch.device("cpu"), workers=0,
        reporter=Reporter(),
    )  # fmt: skip


@pytest.fixture
def extracted(stage1: Trained, photos: Path, tmp_path: Path) -> Workspace:
    """A workspace with embeddings of photos that may be changed."""
    workspace = stage1.workspace
    images = workspace.load_dataset().images
    prepare(workspace, shutil.copytree(photos, tmp_path / "own photos"), images, stage1.config)
    _extract(workspace)
    return workspace


def _root(workspace: Workspace) -> Path:
    return workspace.load_dataset().root


def test_a_photo_that_was_replaced_is_named_with_the_command_to_run(extracted: Workspace) -> None:
    load_features(extracted, "val")
    write_photo(_root(extracted) / "val3.png", seed=99)
    with pytest.raises(
        WorkspaceError,
        match=r"val\.h5: 1 of 6 photos were replaced after their embeddings were made \(first: val3\.png\); run 'dpce",
    ):
        load_features(extracted, "val")
    _extract(extracted)
    load_features(extracted, "val")


def test_a_photo_of_the_same_size_and_time_is_noticed(extracted: Workspace) -> None:
    path = _root(extracted) / "val3.png"
    Image.new("RGB", (8, 8)).save(path, "BMP")
    _extract(extracted)
    load_features(extracted, "val")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    Image.new("RGB", (8, 8), "red").save(path, "BMP")
    os.utime(path, ns=times)
    with pytest.raises(WorkspaceError, match=r"1 of 6 photos were replaced"):
        load_features(extracted, "val")


def test_contents_are_read_only_where_files_changed(extracted: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    load_features(extracted, "val")
    with monkeypatch.context() as patched:
        patched.setattr(replaced_photos, "photo_contents", lambda *_: pytest.fail("contents were read"))
        load_features(extracted, "val")
        os.utime(_root(extracted) / "val3.png")
        with pytest.raises(pytest.fail.Exception):
            load_features(extracted, "val")
    load_features(extracted, "val")
    monkeypatch.setattr(replaced_photos, "photo_contents", lambda *_: pytest.fail("contents were read"))
    load_features(extracted, "val")


def test_a_copied_data_set_keeps_its_embeddings(extracted: Workspace, tmp_path: Path) -> None:
    dataset = extracted.load_dataset()
    for path in shutil.copytree(dataset.root, tmp_path / "elsewhere").iterdir():
        os.utime(path, (5, 5))
    prepare(extracted, tmp_path / "elsewhere", dataset.images, dataset.config)
    load_features(extracted, "val")


def test_embeddings_are_used_with_a_note_where_photos_are_not_there(extracted: Workspace) -> None:
    root, before = _root(extracted), load_features(extracted, "val")[0]
    (root / "val3.png").unlink()
    reporter = Recorder()
    load_features(extracted, "val", reporter)
    assert reporter.notes == [f"1 of 6 val photos are not below {root} now; their embeddings are used as they are"]
    root.rename(root.with_name("not mounted"))
    reporter = Recorder()
    store, _ = load_features(extracted, "val", reporter)
    assert torch.equal(store.image_embeddings, before.image_embeddings)
    assert reporter.notes == [f"6 of 6 val photos are not below {root} now; their embeddings are used as they are"]


def test_a_photo_replaced_in_a_shard_is_noticed(extracted: Workspace) -> None:
    dataset, root = extracted.load_dataset(), _root(extracted)

    def write(replaced: str) -> list[PreparedImage]:
        """The validation photos in a shard, one of them replaced by a photo of the same size in bytes."""
        contents = {image.path: (root / image.path).read_bytes() for image in dataset.split("val")}
        if replaced:
            contents[replaced] = contents[replaced][:-1] + b"!"
        write_tar(root / "val.tar", list(contents.items()))
        with open(root / "val.tar", "rb") as file:
            extents = {member.name: extent(file, member) for member in members(file)}
        return [
            replace(image, path=f"val.tar/{image.path}", extent=extents[image.path]) for image in dataset.split("val")
        ]

    prepare(extracted, root, [*dataset.split("train"), *write("")], dataset.config)
    _extract(extracted)
    load_features(extracted, "val")
    os.utime(root / "val.tar")
    load_features(extracted, "val")
    write("val3.png")
    with pytest.raises(WorkspaceError, match=r"1 of 6 photos were replaced .*first: val\.tar/val3\.png"):
        load_features(extracted, "val")


@pytest.mark.parametrize("contents", [None, 3, [], ["", ""]])
def test_embeddings_that_do_not_say_of_which_photos_they_are_have_to_be_made_again(
    extracted: Workspace, contents: object
) -> None:
    store, _ = load_features(extracted, "val")
    store.meta["contents"] = contents
    with pytest.raises(WorkspaceError, match=r"does not say which photos its embeddings were made from; run 'dpce ext"):
        replaced_photos.check_photos(extracted, "val", store, Reporter())
