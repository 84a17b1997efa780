from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpce_cli.core.config import Config
from dpce_cli.core.errors import CheckpointError, DataError, TrainingError
from dpce_cli.core.models.dual_encoder import DualEncoder, InstanceLosses
from dpce_cli.core.processes.interruption import Interrupted
from dpce_cli.core.training import run
from dpce_cli.core.training.stage1 import build_model
from dpce_cli.core.training.validation import ValidationSet
from dpce_cli.core.workspace.checkpoint import fingerprint, save_checkpoint
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.tiny import (
    EPOCHS,
    STEPS,
    Recorder,
    checkpoint,
    outcome,
    prepare,
    records,
    send_at,
    tiny_config,
    tiny_images,
    train,
)

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.mark.parametrize("stage", [1, 2])
def test_an_interrupted_run_continues_to_the_same_result(
    start: Callable[[], tuple[Workspace, Config]], stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_LOG_EVERY", 2)
    whole, config = start()
    expected = train(whole, stage, config, fresh=stage == 1)

    for step in (0, 1, STEPS - 1, STEPS + 1, EPOCHS * STEPS - 1):
        broken, _ = start()
        with monkeypatch.context() as patch:
            send_at(patch, step)
            with pytest.raises(Interrupted, match=f"stopped at step {step + 1}; the same command continues there"):
                train(broken, stage, config, fresh=stage == 1)
        assert checkpoint(broken, stage, "last").step == step + 1

        reporter = Recorder()
        result = train(broken, stage, config, reporter=reporter)
        assert f"continuing {broken.stage_folder(stage) / 'last.pt'} after step {step + 1}" in reporter.notes
        assert outcome(broken, stage) == outcome(whole, stage)
        assert result.validation == expected.validation
        assert result.curves.is_file()


def test_sigterm_stops_a_run_as_ctrl_c_does(stage1: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    send_at(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(stage1.workspace, 1, stage1.config, fresh=True)
    assert checkpoint(stage1.workspace, 1, "last").step == 2


def test_a_run_leaves_the_signal_handlers_as_it_found_them(stage1: Trained) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(stage1.workspace, 1, stage1.config, fresh=True)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_finished_stage_is_left_as_it_is(stage1: Trained) -> None:
    folder = stage1.workspace.stage_folder(1)
    kept = [folder / name for name in ("best.pt", "last.pt", "metrics.jsonl", *_events(folder))]
    before = [(path.read_bytes(), path.name) for path in kept]
    inodes = [path.stat().st_ino for path in kept[:2]]

    reporter = Recorder()
    result = train(stage1.workspace, 1, stage1.config, reporter=reporter)

    assert "stage 1 is finished; begin anew with --fresh" in reporter.notes
    assert [(path.read_bytes(), path.name) for path in kept] == before
    assert [path.stat().st_ino for path in kept[:2]] == inodes
    assert len(_events(folder)) == 1
    assert result.best == folder / "best.pt"
    assert result.validation == checkpoint(stage1.workspace, 1, "last").best


def _events(folder: Path) -> list[str]:
    return [f"tensorboard/{path.name}" for path in (folder / "tensorboard").iterdir()]


def test_other_settings_are_refused_by_name(stage1: Trained) -> None:
    changed = stage1.config.with_settings(["stage1.weight_decay=0.5", "model.dropout=0.3"])
    last = (stage1.workspace.stage_folder(1) / "last.pt").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        train(stage1.workspace, 1, changed)
    for part in ("model.dropout: 0.1 -> 0.3", "stage1.weight_decay: ", "last.pt", "--fresh"):
        assert part in str(caught.value)
    assert (stage1.workspace.stage_folder(1) / "last.pt").read_bytes() == last


def test_a_run_continues_with_another_learning_rate_and_says_so(stage1: Trained) -> None:
    reporter = Recorder()
    changed = stage1.config.with_settings(["stage1.learning_rate=0.0005", "stage1.clip_norm=1"])
    train(stage1.workspace, 1, changed, reporter=reporter)
    assert "from here on stage1.learning_rate: 0.003 -> 0.0005" in reporter.notes
    assert "from here on stage1.clip_norm: 0.0 -> 1.0" in reporter.notes


def test_another_number_of_steps_per_epoch_is_refused(stage1: Trained) -> None:
    last = stage1.workspace.stage_folder(1) / "last.pt"
    save_checkpoint(last, replace(checkpoint(stage1.workspace, 1, "last"), steps_per_epoch=4))
    with pytest.raises(
        CheckpointError, match=r"4 steps per epoch; now 12 training photos can be used, 3 steps per epoch"
    ):
        train(stage1.workspace, 1, stage1.config)


def test_a_damaged_journal_does_not_stop_a_run(stage1: Trained) -> None:
    journal = stage1.workspace.stage_folder(1) / "metrics.jsonl"
    whole = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([b'{"kind": 3}', b"\xff\x00", b"[" * 100_000, b'{"kind": "train"}', *whole, b"{"]))
    train(stage1.workspace, 1, stage1.config)
    assert journal.read_bytes().splitlines() == whole


def test_another_stage_i_model_is_refused_by_a_begun_stage_ii(stage1: Trained) -> None:
    train(stage1.workspace, 2, stage1.config)
    train(stage1.workspace, 1, stage1.config.with_settings(["seed=1"]), fresh=True)
    with pytest.raises(CheckpointError, match=r"the Stage I model.*--fresh"):
        train(stage1.workspace, 2, stage1.config)


def test_other_training_photos_than_the_run_began_with_are_refused(stage1: Trained) -> None:
    """As when one photo is repaired and another one lost."""
    folder = stage1.workspace.stage_folder(1)
    save_checkpoint(folder / "last.pt", replace(checkpoint(stage1.workspace, 1, "last"), usable_photos="0" * 64))
    journal = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"began with other training photos, .* --fresh'"):
        train(stage1.workspace, 1, stage1.config)
    assert (folder / "metrics.jsonl").read_bytes() == journal


def test_a_state_of_an_older_version_is_continued(
    start: Callable[[], tuple[Workspace, Config]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such files tell neither which photos could be used nor how many epochs were validated."""
    whole, config = start()
    train(whole, 1, config, fresh=True)
    begun, _ = start()
    with monkeypatch.context() as patch:
        send_at(patch, 2 * STEPS + 1)
        with pytest.raises(Interrupted):
            train(begun, 1, config, fresh=True)
    last = begun.stage_folder(1) / "last.pt"
    content = torch.load(last, weights_only=True)
    for new in ("epochs", "usable_photos"):
        del content[new]
    torch.save(content, last)
    train(begun, 1, config)
    assert outcome(begun, 1) == outcome(whole, 1)


def test_a_run_that_is_killed_in_a_validation_keeps_the_epoch(
    start: Callable[[], tuple[Workspace, Config]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, config = start()
    train(whole, 1, config, fresh=True)

    def killed(self: ValidationSet, model: DualEncoder) -> None:
        raise KeyboardInterrupt

    broken, _ = start()
    for fresh in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(ValidationSet, "evaluate", killed)
            with pytest.raises(KeyboardInterrupt):
                train(broken, 1, config, fresh=fresh)
        assert checkpoint(broken, 1, "last").step == STEPS
    train(broken, 1, config)
    assert outcome(broken, 1) == outcome(whole, 1)


def test_fresh_leaves_nothing_of_the_run_before(stage1: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stage1.workspace.stage_folder(1)
    old = _events(folder)
    changed = stage1.config.with_settings(["stage1.learning_rate=0.001"])
    send_at(monkeypatch, 1)
    with pytest.raises(Interrupted):
        train(stage1.workspace, 1, changed, fresh=True)
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "lock", "metrics.jsonl"]
    assert records(stage1.workspace, 1) == []
    monkeypatch.undo()
    train(stage1.workspace, 1, changed)
    assert len(_events(folder)) == 1
    assert not set(_events(folder)) & set(old)
    assert [record["step"] for record in records(stage1.workspace, 1, "validation")] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    start: Callable[[], tuple[Workspace, Config]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, config = start()
    train(whole, 1, config, fresh=True)

    broken, _ = start()
    calls, instance_losses = iter(range(1000)), DualEncoder.instance_losses

    def failing(self: DualEncoder, *arguments: Any) -> InstanceLosses:
        losses = instance_losses(self, *arguments)
        return losses._replace(image_loss=losses.image_loss * (math.nan if next(calls) == STEPS + 1 else 1))

    with monkeypatch.context() as patch:
        patch.setattr(DualEncoder, "instance_losses", failing)
        with pytest.raises(TrainingError) as caught:
            train(broken, 1, config, fresh=True)
    message = str(caught.value)
    assert f"stage 1, step {STEPS + 1}: the loss is nan (image_loss nan, text_loss " in message
    assert re.search(r"\), for the photos train/\d+, train/\d+, train/\d+, train/\d+\. Run again with", message)
    assert f"the last good state, {broken.stage_folder(1) / 'last.pt'}" in message
    assert "--set stage1.learning_rate=0.0003" in message
    assert checkpoint(broken, 1, "last").step == STEPS
    train(broken, 1, config)
    assert outcome(broken, 1) == outcome(whole, 1)


def test_an_absurd_learning_rate_is_named_in_the_error(stage1: Trained) -> None:
    config = stage1.config.with_settings(["stage1.learning_rate=1e30", "stage1.schedule=steps"])
    with pytest.raises(TrainingError, match=r"stage 1, step \d+: .*the last good state, the beginning"):
        train(stage1.workspace, 1, config, fresh=True)
    assert not (stage1.workspace.stage_folder(1) / "last.pt").exists()


def test_weights_that_are_not_finite_are_never_saved(stage1: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "learning_rate", lambda stage, step, steps: math.nan if step == 2 * STEPS - 1 else 0.001)
    with pytest.raises(TrainingError, match=f"step {2 * STEPS}: some weights are no longer finite"):
        train(stage1.workspace, 1, stage1.config, fresh=True)
    last = checkpoint(stage1.workspace, 1, "last")
    assert last.step == STEPS
    assert all(bool(torch.isfinite(value).all()) for value in last.model.values())


def test_the_best_checkpoint_is_that_of_the_highest_rsum(stage1: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = iter([200.0, 500.0, 500.0, 400.0])
    direction = SimpleNamespace(r1=0.0, r5=0.0, r10=0.0, median_rank=1.0)
    monkeypatch.setattr(
        ValidationSet,
        "evaluate",
        lambda self, model: SimpleNamespace(image_to_text=direction, text_to_image=direction, rsum=next(scripted)),
    )
    config = stage1.config.with_settings(["stage1.epochs=4"])
    result = train(stage1.workspace, 1, config, fresh=True)
    assert result.validation == {"rsum": 500.0, "epoch": 2}
    assert checkpoint(stage1.workspace, 1, "best").step == 2 * STEPS
    assert checkpoint(stage1.workspace, 1, "last").best == {"rsum": 500.0, "epoch": 2}


def test_the_best_checkpoint_has_the_recall_that_its_epoch_recorded(learning_stage1: Trained, tiny_cnn: None) -> None:
    workspace = learning_stage1.workspace
    validations = records(workspace, 1, "validation")
    best = checkpoint(workspace, 1, "best")
    assert len(validations) == EPOCHS
    assert best.best["rsum"] == max(record["rsum"] for record in validations)
    assert validations[int(best.best["epoch"]) - 1]["step"] == best.step
    model, _ = build_model(workspace.load_dataset(), learning_stage1.config, None, stage=1)
    model.load_state_dict(best.model)
    validation_set = ValidationSet(
        workspace.load_dataset(), learning_stage1.config, best.vocabulary, model.image_encoder,
        cache=None, workers=0, reporter=Recorder(),
    )  # fmt: skip
    assert validation_set.evaluate(model).rsum == best.best["rsum"]


def test_without_a_validation_split_the_last_model_is_the_best(tmp_path: Path, photos: Path, stage1: Trained) -> None:
    workspace, reporter = Workspace(tmp_path / "no-val"), Recorder()
    images = [image for image in tiny_images(photos) if image.split != "val"]
    prepare(workspace, photos, images, stage1.config)
    result = train(workspace, 1, stage1.config, reporter=reporter)
    assert reporter.warnings == ["no validation split: the model of the last epoch is taken as the best"]
    assert result.validation == {}
    best, last = checkpoint(workspace, 1, "best"), checkpoint(workspace, 1, "last")
    assert best.step == last.step == EPOCHS * STEPS
    assert fingerprint(best.model) == fingerprint(last.model)
    assert records(workspace, 1, "validation") == []


@pytest.fixture
def own_photos(tmp_path: Path, tiny_cnn: None) -> Trained:
    """A data set whose photos may be changed, for a CNN that learns from them."""
    workspace, config = Workspace(tmp_path / "own"), tiny_config(None)
    prepare(workspace, tmp_path / "photos", tiny_images(tmp_path / "photos"), config)
    return Trained(workspace, config)


def test_a_photo_that_cannot_be_read_is_named_and_skipped(own_photos: Trained) -> None:
    root, reporter = own_photos.workspace.load_dataset().root, Recorder()
    (root / "train3.png").write_bytes(b"no image")
    train(own_photos.workspace, 1, own_photos.config, reporter=reporter)
    (warning,) = reporter.warnings
    assert f"{root / 'train3.png'}: not a" in warning
    assert checkpoint(own_photos.workspace, 1, "last").step == EPOCHS * STEPS


def test_photos_that_are_all_missing_stop_the_run_with_an_error(own_photos: Trained) -> None:
    root = own_photos.workspace.load_dataset().root
    for photo in root.glob("train*"):
        photo.unlink()
    with pytest.raises(DataError, match=r"photos: too few photos of step 0 can be read; put them there"):
        train(own_photos.workspace, 1, own_photos.config)


def test_no_photo_of_the_test_split_is_read(
    start: Callable[[], tuple[Workspace, Config]],
) -> None:
    workspace, config = start()
    dataset, reporter = workspace.load_dataset(), Recorder()
    assert not any((dataset.root / image.path).exists() for image in dataset.split("test"))
    train(workspace, 1, config, fresh=True, reporter=reporter)
    train(workspace, 2, config, reporter=reporter)
    assert reporter.warnings == []


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    start: Callable[[], tuple[Workspace, Config]],
) -> None:
    (one, config), (two, _), (other, _) = start(), start(), start()
    train(one, 1, config, fresh=True)
    torch.rand(7)
    train(two, 1, config, fresh=True)
    train(other, 1, config.with_settings(["seed=1"]), fresh=True)
    assert outcome(one, 1) == outcome(two, 1)
    assert outcome(one, 1)["last"] != outcome(other, 1)["last"]
