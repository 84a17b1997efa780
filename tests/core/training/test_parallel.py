"""Several processes train as one does with the same batches."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dpce_cli.core.config import Config
from dpce_cli.core.processes.collectives import rank
from dpce_cli.core.processes.interruption import Interrupted
from dpce_cli.core.training.batches import Batch
from dpce_cli.core.training.journal import Journal
from dpce_cli.core.training.run import StageRun
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.gloo import in_processes
from tests.core.tiny import STEPS, checkpoint, copy, records, send_at, tiny_cnn, train

SETTINGS = [
    # What the image encoder drops differs from process to process; what is dropped before or after it, of the whole
    # batch, does not.
    "model.feature_dropout=0",
    "model.word_dropout=0.2",
    "model.dropout=0.3",
    # Batches of 4 and batch norms make much of rounding errors; small steps of SGD, unlike AdamW's, keep them small.
    *(f"{stage}.{setting}" for stage in ("stage1", "stage2") for setting in ("optimizer=sgd", "learning_rate=0.0003")),
    "stage2.negatives=hardest_in_pool",
    "stage2.captions_per_image=1",
    "stage2.negative_pool=5",
]


def _train(root: Path, stage: int, config: Config, fresh: bool = True) -> None:
    Journal.draw_curves = lambda self, path, **options: path.touch()  # type: ignore[method-assign]
    with tiny_cnn():
        train(Workspace(root), stage, config, fresh=fresh)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("kind", ["cache", "photos"])
def test_two_processes_train_as_one_does(
    tmp_path: Path, frozen_stage1: Trained, learning_stage1: Trained, stage: int, kind: str
) -> None:
    trained = frozen_stage1 if kind == "cache" else learning_stage1
    (tmp_path / "words.toml").write_text('photo = ["x0 x1 x2 x3 x4 x5 x6 x7 x8 x9 x10 x11"]')
    swapping = ["stage2.detail_weight=1", f"stage2.details={tmp_path / 'words.toml'}"]
    config = trained.config.with_settings([*SETTINGS, *swapping])
    one, two = (copy(trained.workspace, tmp_path / name) for name in ("one", "two"))
    shutil.rmtree(two.folder / "cache", ignore_errors=True)
    _train(one.root, stage, config)
    in_processes(2, _train, two.root, stage, config)

    for expected, got in zip(records(one, stage), records(two, stage), strict=True):
        assert got.pop("kind") == expected.pop("kind")
        assert got.pop("gradient_norm", 0) == pytest.approx(expected.pop("gradient_norm", 0), rel=0.01)
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)
    whole, shared = checkpoint(one, stage, "last"), checkpoint(two, stage, "last")
    assert whole.model.keys() == shared.model.keys()
    for name, value in whole.model.items():
        torch.testing.assert_close(shared.model[name], value, atol=1e-4, rtol=1e-4)
    moments, shared_moments = (
        [state["momentum_buffer"] for state in model.optimizer["state"].values()] for model in (whole, shared)
    )
    for gradient, shared_gradient in zip(moments, shared_moments, strict=True):
        error = float((shared_gradient - gradient).abs().max())
        assert error < 0.01 * float(gradient.abs().max()) + 1e-4


@pytest.mark.slow
def test_two_processes_take_a_step_in_parts_and_cut_its_gradients_as_one_does(
    tmp_path: Path, frozen_stage1: Trained
) -> None:
    parts = ["stage1.batch_size=8", "stage1.accumulation_steps=2", "stage1.clip_norm=1", "stage1.learning_rate=0.1"]
    config = frozen_stage1.config.with_settings([*SETTINGS, *parts])
    one, two = (copy(frozen_stage1.workspace, tmp_path / name) for name in ("one", "two"))
    _train(one.root, 1, config)
    in_processes(2, _train, two.root, 1, config)
    assert all(record["gradient_norm"] > 10 for record in records(one, 1, "train"))
    whole, shared = checkpoint(one, 1, "last"), checkpoint(two, 1, "last")
    for name, value in whole.model.items():
        torch.testing.assert_close(shared.model[name], value, atol=2e-5, rtol=1e-4)


def _continue_and_stop(root: Path, config: Config) -> None:
    """Have the second of two processes be told to stop in step 4."""
    batches = StageRun.batches

    def signalling(self: StageRun, epoch: int) -> Iterator[Batch]:
        for batch in batches(self, epoch):
            if self.state.step == STEPS + 1 and rank():
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    StageRun.batches = signalling  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=f"stopped at step {STEPS + 2}"):
        _train(root, 1, config, fresh=False)


@pytest.mark.slow
def test_another_number_of_processes_continues(
    tmp_path: Path, frozen_stage1: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two what one has begun, and one what two have continued."""
    config = frozen_stage1.config.with_settings([*SETTINGS, "stage1.optimizer=adamw"])
    one, two = (copy(frozen_stage1.workspace, tmp_path / name) for name in ("one", "two"))
    _train(one.root, 1, config)
    with monkeypatch.context() as patch:
        send_at(patch, 1)
        with pytest.raises(Interrupted):
            _train(two.root, 1, config)
    in_processes(2, _continue_and_stop, two.root, config)
    assert checkpoint(two, 1, "last").step == STEPS + 2
    _train(two.root, 1, config, fresh=False)
    whole, continued = checkpoint(one, 1, "last"), checkpoint(two, 1, "last")
    assert continued.step == whole.step
    for name, value in whole.model.items():
        if name != "text_encoder.word_bias":  # its gradient is rounding errors alone
            torch.testing.assert_close(continued.model[name], value, atol=5e-3, rtol=5e-3)
