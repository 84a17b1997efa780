from __future__ import annotations

import errno
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpce_cli.core.errors import CheckpointError, WorkspaceError
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.training.stage1 import build_model
from dpce_cli.core.workspace.checkpoint import (
    Checkpoint,
    check_belongs,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import tiny_config

REMEDY = "dpce train-stage1"


@pytest.fixture
def made(workspace: Workspace, weights: Path) -> Checkpoint:
    dataset, config = workspace.load_dataset(), tiny_config(weights)
    model, words = build_model(dataset, config, None, stage=1)
    return Checkpoint(
        stage=1,
        config=config,
        vocabulary=words.vocabulary,
        word_dim=words.word_dim,
        word_vectors=words.source,
        instances=12,
        dataset=dataset.name,
        dataset_fingerprint=dataset.training_fingerprint,
        parent="",
        prepared_vocabulary=dataset.vocabulary.fingerprint,
        step=7,
        steps_per_epoch=3,
        best={"rsum": 99.5, "epoch": 2},
        unlogged={"loss": torch.tensor(1.5)},
        model=model.state_dict(),
        optimizer={"state": {0: {"exp_avg": torch.rand(3)}}, "param_groups": [{"lr": 0.1, "multiplier": 1.0}]},
    )


@pytest.fixture
def path(made: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "stage1" / "best.pt", made)
    return tmp_path / "stage1" / "best.pt"


def test_a_checkpoint_is_read_as_it_was_saved(made: Checkpoint, path: Path) -> None:
    read = load_checkpoint(path, remedy=REMEDY)
    tensors = ("model", "optimizer", "unlogged", "fingerprint")
    assert {k: v for k, v in vars(read).items() if k not in tensors} == {
        k: v for k, v in vars(made).items() if k not in tensors
    }
    assert read.fingerprint == fingerprint(made.model) == fingerprint(read.model)
    assert read.unlogged == made.unlogged
    assert read.optimizer["param_groups"] == made.optimizer["param_groups"]
    assert torch.equal(read.optimizer["state"][0]["exp_avg"], made.optimizer["state"][0]["exp_avg"])
    assert sorted(os.listdir(path.parent)) == [".best.pt.checked", "best.pt"]


def test_the_fingerprint_depends_on_every_name_and_value() -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3), "e": torch.zeros(0)}
    assert fingerprint(state) == fingerprint(dict(reversed(state.items())))
    others = [
        {**state, "n": torch.tensor(4)},
        {**state, "a": torch.arange(6.0).view(2, 3).nextafter(torch.tensor(9.0))},
        {"b": state["a"], "n": state["n"], "e": state["e"]},
    ]
    assert len({fingerprint(other) for other in [state, *others]}) == 4
    assert fingerprint({"a": state["a"].T.contiguous().T}) == fingerprint({"a": state["a"]})


def test_a_missing_checkpoint_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.pt: there is no such checkpoint; run 'dpce train-stage1' first"):
        load_checkpoint(tmp_path / "best.pt", remedy=REMEDY)


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_says_what_to_run(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        CheckpointError, match=r"best\.pt: cannot be read as a checkpoint .*run 'dpce train-stage1' again"
    ):
        load_checkpoint(path, remedy=REMEDY)


@pytest.mark.parametrize(
    "content", [b"not a zip", b"PK\x03\x04" + b"x" * 100, b"\0" * 5000, pickle.dumps({"format": 1})]
)
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.pt: cannot be read .*'dpce train-stage1' again"):
        load_checkpoint(path, remedy=REMEDY)


def test_a_zip_of_something_else_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no model")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path, remedy=REMEDY)


class Exploit:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(path: Path, tmp_path: Path, as_zip: bool) -> None:
    content = torch.load(path, weights_only=True)
    content["model"]["extra"] = Exploit(f"touch {tmp_path / 'executed'}")
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=r"best\.pt: cannot be read"):
        load_checkpoint(path, remedy=REMEDY)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{"format": 1}, {"format": "2"}, {"format": None}])
def test_another_format_is_named(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"has format {content['format']}, this dpce reads 2; run 'dpce train"):
        load_checkpoint(path, remedy=REMEDY)


@pytest.mark.parametrize("key", ["format", "config", "vocabulary", "model", "step", "instances"])
def test_a_checkpoint_without_a_part_is_refused_by_its_name(path: Path, key: str) -> None:
    content = torch.load(path, weights_only=True)
    del content[key]
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=rf"best\.pt: cannot be read as a checkpoint \(.*{key}.*train-stage1' again"
    ):
        load_checkpoint(path, remedy=REMEDY)


@pytest.mark.parametrize("content", [[1, 2], {}, {"format": 2, "surplus": 3}, torch.zeros(3)])
def test_a_file_of_other_content_is_refused(path: Path, content: Any) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path, remedy=REMEDY)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nsecond line"),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint(
    made: Checkpoint, path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def failing(content: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(WorkspaceError, match=r"best\.pt: cannot be written \(.*\); free space or") as caught:
        save_checkpoint(path, replace(made, step=8))
    assert "second line" not in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["best.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_torch_raises_on_a_really_full_disk_is_a_workspace_error(
    made: Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, save = path.read_bytes(), torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: save(content, "/dev/full"))
    with pytest.raises(WorkspaceError, match=r"best\.pt: cannot be written"):
        save_checkpoint(path, made)
    assert path.read_bytes() == before


def test_a_checkpoint_belongs_to_the_data_set_it_was_trained_on(made: Checkpoint, workspace: Workspace) -> None:
    check_belongs(made, workspace.load_dataset(), Path("best.pt"))


def test_a_checkpoint_of_another_vocabulary_is_refused(made: Checkpoint, workspace: Workspace) -> None:
    other = replace(workspace.load_dataset(), vocabulary=Vocabulary(("dog",), True))
    with pytest.raises(
        CheckpointError, match=r"best\.pt: .*another vocabulary.*data set 'tiny'; run 'dpce train-stage1 --f"
    ):
        check_belongs(made, other, Path("best.pt"))


def test_a_checkpoint_of_other_images_is_refused(made: Checkpoint, workspace: Workspace) -> None:
    other = replace(workspace.load_dataset(), training_fingerprint="other")
    with pytest.raises(
        CheckpointError, match=r"best\.pt: .*other training photos or captions; run 'dpce train-stage1 --fresh'"
    ):
        check_belongs(made, other, Path("best.pt"))


def test_restored_encoders_compute_what_the_model_did(made: Checkpoint, path: Path, workspace: Workspace) -> None:
    model, _ = build_model(workspace.load_dataset(), made.config, None, stage=1)
    model.load_state_dict(made.model)
    model.eval()
    read = load_checkpoint(path, remedy=REMEDY)
    photos = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    features, token_ids = torch.rand(3, 32), torch.randint(0, 9, (4, 10))
    images, text = Model.of_checkpoint(read).image_encoder, Model.of_checkpoint(read).text_encoder
    with torch.inference_mode():
        assert torch.equal(images(photos), model.image_encoder(photos))
        assert torch.equal(images(features), model.image_encoder(features))
        assert torch.equal(text(token_ids), model.text_encoder(token_ids))
    assert not images.training
    assert not text.training
