from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dpce_cli.core.config import Config
from dpce_cli.core.errors import TrainingError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.presets import build_preset
from dpce_cli.core.processes.collectives import rank
from dpce_cli.core.processes.interruption import Interrupted
from dpce_cli.core.training.optimisation import ParameterGroup, build_optimizer
from dpce_cli.core.training.precision import Precision
from dpce_cli.core.training.stage1 import build_model
from dpce_cli.core.training.updates import Updater
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.gloo import in_processes
from tests.core.tiny import EPOCHS, STEPS, checkpoint, outcome, records, send_at, train

pytestmark = pytest.mark.usefixtures("no_curves")


def updater(*values: float, clip_norm: float = 0, precision: Precision = "fp32") -> tuple[nn.Parameter, Updater]:
    weight = nn.Parameter(torch.tensor(values))
    optimizer = torch.optim.SGD([{"params": [weight], "multiplier": 1.0}], lr=1.0, fused=True)
    cpu = torch.device("cpu")
    return weight, Updater(optimizer, clip_norm=clip_norm, precision=precision, device=cpu, shared_out=[])


def test_the_gradients_of_parts_are_added() -> None:
    weight, update = updater(1.0, 2.0)
    update.backward(weight[0] * 3)
    update.backward(weight.sum())
    assert update.step(0.5, measure=True) == pytest.approx(math.sqrt(4**2 + 1))
    assert weight.tolist() == [1 - 0.5 * 4, 2 - 0.5]
    update.backward(weight[0])
    assert update.step(1.0, measure=False) is None
    assert weight.tolist() == [-2, 1.5]


@pytest.mark.parametrize(("norm", "factor"), [(0.5, 0.1), (5.0, 1.0), (50.0, 1.0), (0.0, 1.0)])
def test_gradients_longer_than_the_norm_are_cut_to_it(norm: float, factor: float) -> None:
    weight, update = updater(0.0, 0.0, clip_norm=norm)
    update.backward((weight * torch.tensor([3.0, 4.0])).sum())
    assert update.step(1.0, measure=True) == pytest.approx(5)
    assert weight.tolist() == pytest.approx([-3 * factor, -4 * factor])


def test_in_float16_losses_are_scaled_and_gradients_scaled_back() -> None:
    weight, update = updater(1.0, precision="fp16", clip_norm=1)
    assert update.scale == 65536
    update.backward(weight[0] * 2)
    assert weight.grad is not None
    assert weight.grad.tolist() == [2 * 65536]
    assert update.step(1.0, measure=True) == 2
    assert weight.tolist() == pytest.approx([0])


def test_a_step_whose_gradients_overflow_is_skipped_and_the_scale_is_halved() -> None:
    weight, update = updater(1.0, precision="fp16")
    update.backward(weight[0] * math.inf)
    update.step(1.0, measure=True)
    assert weight.tolist() == [1]
    assert update.scale == 32768
    again = updater(1.0, precision="fp16")[1]
    again.load_state(update.state())
    assert again.scale == 32768
    assert again.state() == update.state()
    plain = updater(1.0)[1]
    plain.load_state(update.state())
    assert (plain.scale, plain.state()) == (1, {})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_overflow_in_the_first_step_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty_like", lambda value: torch.full_like(value, math.nan))  # what it may hold
    stage = build_preset("paper-flickr30k").with_settings([f"stage1.optimizer={name}"]).stage1
    ended = []
    for scales in ([1.0, 1.0], [math.inf, 1.0, 1.0]):
        weight = nn.Parameter(torch.ones(5))
        optimizer = build_optimizer([ParameterGroup("weight", 1.0, [weight])], stage)
        update = Updater(optimizer, clip_norm=0, precision="fp16", device=torch.device("cpu"), shared_out=[])
        for scale in scales:
            update.backward((weight * scale).sum())
            update.step(0.1, measure=False)
        ended.append(weight.tolist())
    assert ended[0] == ended[1]


def _overflow_on_the_second_process() -> None:
    both, own = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [both, own], "multiplier": 1.0}], lr=1.0, fused=True)
    update = Updater(optimizer, clip_norm=0, precision="fp16", device=torch.device("cpu"), shared_out=[own])
    for factor, expected in ((math.inf if rank() else 1.0, 1.0), (1.0, 0.0)):
        update.backward((both + own * factor).sum())
        norm = update.step(1.0, measure=True)
        assert (both.item(), own.item(), update.scale) == (expected, expected, 32768)
    assert norm == pytest.approx(math.sqrt(3))  # one gradient that both processes have, and two of their own


@pytest.mark.slow
def test_all_processes_skip_a_step_whose_gradients_overflow_in_one_process() -> None:
    in_processes(2, _overflow_on_the_second_process)


def test_a_float16_run_continues_with_its_loss_scale(stage1: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    train(stage1.workspace, 1, stage1.config, fresh=True, precision="fp16")
    whole, last = outcome(stage1.workspace, 1), checkpoint(stage1.workspace, 1, "last")
    assert last.scaler["scale"] < 65536
    assert records(stage1.workspace, 1, "train")[-1]["loss_scale"] == last.scaler["scale"]
    assert checkpoint(stage1.workspace, 1, "best").scaler == {}
    with monkeypatch.context() as patch:
        send_at(patch, STEPS)
        with pytest.raises(Interrupted):
            train(stage1.workspace, 1, stage1.config, fresh=True, precision="fp16")
    train(stage1.workspace, 1, stage1.config, precision="fp16")
    assert outcome(stage1.workspace, 1) == whole
    assert checkpoint(stage1.workspace, 1, "last").scaler == last.scaler


def test_gradients_that_are_never_finite_in_float16_end_the_run(
    stage1: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = Updater.backward
    monkeypatch.setattr(Updater, "backward", lambda self, loss: backward(self, loss * math.inf))
    config = stage1.config.with_settings(["stage1.epochs=20"])
    with pytest.raises(TrainingError, match=r"not finite in float16; --precision bf16 may help"):
        train(stage1.workspace, 1, config, fresh=True, precision="fp16")


@pytest.fixture
def batch_norms_as_in_testing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They alone see a part of a step at a time."""
    train_mode = DualEncoder.train

    def but_batch_norms(self: DualEncoder, mode: bool = True) -> DualEncoder:
        train_mode(self, mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()
        return self

    monkeypatch.setattr(DualEncoder, "train", but_batch_norms)


@pytest.mark.usefixtures("batch_norms_as_in_testing")
def test_a_step_in_parts_is_the_same_step_but_for_batch_norms(
    start: Callable[[], tuple[Workspace, Config]],
) -> None:
    settings = ["model.dropout=0", "model.word_dropout=0", "model.feature_dropout=0",
                "stage1.optimizer=sgd", "stage1.learning_rate=0.001"]  # fmt: skip
    results = []
    for parts in (1, 2):
        workspace, config = start()
        config = config.with_settings([*settings, f"stage1.accumulation_steps={parts}"])
        train(workspace, 1, config, fresh=True)
        losses = [record["loss"] for record in records(workspace, 1, "train")]
        results.append((checkpoint(workspace, 1, "last"), losses))
    (whole, whole_losses), (parted, parted_losses) = results
    assert whole.step == parted.step == EPOCHS * STEPS
    for key, value in whole.model.items():
        torch.testing.assert_close(parted.model[key], value, atol=1e-5, rtol=1e-4, msg=key)
    assert parted_losses == pytest.approx(whole_losses, rel=1e-4)


@pytest.mark.parametrize("negatives", ["hardest_in_batch", "hardest_in_pool", "random"])
def test_stage_ii_takes_its_steps_in_parts_too(stage1: Trained, negatives: str) -> None:
    config = stage1.config.with_settings(
        [f"stage2.negatives={negatives}", "stage2.captions_per_image=1", "stage2.accumulation_steps=2"]
    )
    train(stage1.workspace, 2, config)
    assert checkpoint(stage1.workspace, 2, "last").step == EPOCHS * STEPS
    assert len(records(stage1.workspace, 2, "train")) == EPOCHS


def test_a_run_cuts_its_gradients_and_records_how_long_they_were(stage1: Trained) -> None:
    settings = ["stage1.optimizer=sgd", "stage1.clip_norm=1e-9", "stage1.weight_decay=0"]
    train(stage1.workspace, 1, stage1.config.with_settings(settings), fresh=True)
    begun = build_model(stage1.workspace.load_dataset(), stage1.config, None, stage=1)[0].state_dict()
    for name, value in checkpoint(stage1.workspace, 1, "last").model.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(value, begun[name], atol=1e-7, rtol=0)
    assert all(record["gradient_norm"] > 1e-3 for record in records(stage1.workspace, 1, "train"))
