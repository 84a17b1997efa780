from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from dpce_cli.core.workspace.features import load_feature_store
from tests.command_line import Outcome, dpce


def _extract(workspace: Path, *arguments: str) -> Outcome:
    return dpce("extract-features", "--workers", "0", *arguments, workspace=workspace)


@pytest.mark.parametrize(("split", "images"), [("val", 6), ("train", 12)])
def test_a_split_is_embedded(workspace: Path, split: str, images: int) -> None:
    outcome = _extract(workspace, "--split", split)
    path = workspace / "scenes" / "features" / f"{split}.h5"

    assert outcome.code == 0
    assert outcome.stdout == f"embeddings of the {split} split, Stage 2 model: {path}\n"
    assert outcome.stderr.splitlines() == [
        f"embedding {split} photos | {images}/{images} | eta 0s",
        f"embedding {split} captions | {5 * images}/{5 * images} | eta 0s",
    ]
    store = load_feature_store(path)
    assert store.image_embeddings.shape == (images, 16)
    assert store.text_embeddings.shape == (5 * images, 16)
    torch.testing.assert_close(store.image_embeddings.norm(dim=1), torch.ones(images))
    assert not path.with_name(f"{split}.h5.partial").exists()


def test_embeddings_that_are_there_already_are_not_computed_again(workspace: Path) -> None:
    path = workspace / "scenes" / "features" / "test.h5"
    before = path.stat()
    outcome = _extract(workspace)

    assert outcome.code == 0
    assert outcome.stderr == f"{path} holds these embeddings already\n"
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_the_stage_can_be_chosen(workspace: Path) -> None:
    path = workspace / "scenes" / "features" / "test.h5"
    outcome = _extract(workspace, "--stage", "1")

    assert outcome.stdout == f"embeddings of the test split, Stage 1 model: {path}\n"
    assert load_feature_store(path).meta["stage"] == 1
    assert "Stage 1 model" in dpce("eval", workspace=workspace).stdout


def test_the_precision_can_be_chosen(workspace: Path) -> None:
    path = workspace / "scenes" / "features" / "test.h5"
    exact = load_feature_store(path)
    outcome = _extract(workspace, "--precision", "bf16")
    rounded = load_feature_store(path)

    assert outcome.code == 0
    assert 0 < (rounded.image_embeddings - exact.image_embeddings).abs().max() < 0.05
    assert rounded.text_embeddings.equal(exact.text_embeddings)
    assert _extract(workspace, "--precision", "bf16").stderr == (f"{path} holds these embeddings already\n")


def test_a_full_disk_leaves_what_is_done_and_the_same_command_continues(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace / "scenes" / "features" / "val.h5"
    pwrite, writes = os.pwrite, list[int]()

    def full(descriptor: int, data: bytes, offset: int) -> int:
        writes.append(len(data))
        if len(writes) > 3:  # embeddings, hubness, and how many
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        outcome = _extract(workspace, "--split", "val")

    assert f"{path}: cannot be written (No space left on device)" in outcome.error
    assert not path.exists()
    assert "val.h5: not found; run 'dpce extract-features --split val'" in dpce(
        "eval", "--split", "val", workspace=workspace
    ).error  # fmt: skip
    resumed = _extract(workspace, "--split", "val")
    assert resumed.stderr == "embedding val captions | 30/30 | eta 0s\n"
    whole = path.read_bytes()
    path.unlink()
    assert _extract(workspace, "--split", "val").code == 0
    assert load_feature_store(path).meta["split"] == "val"
    assert path.read_bytes() == whole


def test_a_gpu_that_is_not_there_is_refused(workspace: Path) -> None:
    error = _extract(workspace, "--device", "cuda:99").error

    assert "--device cuda:99: not available (" in error
    assert error.endswith("; choose cpu or auto")


@pytest.mark.parametrize("arguments", [("--stage", "3"), ("--stage", "one"), ("--nosuch",), ("test",)])
def test_a_wrong_command_line_exits_with_2(workspace: Path, arguments: tuple[str, ...]) -> None:
    outcome = _extract(workspace, *arguments)

    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: dpce extract-features" in outcome.stderr
