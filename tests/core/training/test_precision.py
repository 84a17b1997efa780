from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._inductor.exc import TritonMissing

from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.training import precision
from dpce_cli.core.training.precision import Precision, accelerate
from dpce_cli.core.training.stage1 import build_model
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.tiny import EPOCHS, records, tiny_config, train

pytestmark = pytest.mark.usefixtures("no_curves")
CPU = torch.device("cpu")
PHOTOS = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CAPTIONS = torch.tensor([[1, 2, 3, 0, 0, 0, 0, 0, 0, 0], [4, 5, 6, 7, 0, 0, 0, 0, 0, 0]])


def build(workspace: Workspace) -> DualEncoder:
    return build_model(workspace.load_dataset(), tiny_config(None, "model.dropout=0"), None, stage=1)[0].eval()


def losses(model: DualEncoder) -> tuple[torch.Tensor, ...]:
    image, text = model.image_encoder(PHOTOS), model.text_encoder(CAPTIONS)
    instance = model.instance_losses(image, text, torch.arange(4), torch.arange(2), 0.0)
    return image, text, instance.image_loss, instance.text_loss


@pytest.mark.parametrize(("name", "tolerance"), [("bf16", 3e-2), ("fp16", 5e-3)])
def test_in_lower_precision_the_same_is_computed_less_exactly(
    workspace: Workspace, name: Precision, tolerance: float
) -> None:
    plain, lower = build(workspace), build(workspace)
    accelerate(lower, CPU, name, compiled=False)
    for expected, value in zip(losses(plain), losses(lower), strict=True):
        assert value.dtype == torch.float32
        assert not torch.equal(value, expected)
        assert (value - expected).norm() <= tolerance * expected.norm()


def test_weights_and_gradients_stay_in_float32(workspace: Workspace) -> None:
    model = build(workspace).train()
    accelerate(model, CPU, "bf16", compiled=False)
    sum(losses(model)[2:], torch.zeros(())).backward()
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_filters_of_the_image_cnn_are_laid_out_channels_last(workspace: Workspace) -> None:
    model, plain = build(workspace), build(workspace)
    accelerate(model, CPU, "fp32", compiled=False)
    filters = [value for value in model.image_encoder.backbone.parameters() if value.dim() == 4]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in filters)
    for expected, value in zip(losses(plain), losses(model), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_encoders_train_to_the_same_numbers(
    stage1: Trained, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    runs = []
    monkeypatch.setattr(precision, "_COMPILER", backend)
    for compiled in (False, True):
        train(stage1.workspace, 1, stage1.config, fresh=True, compiled=compiled)
        runs.append([record["loss"] for record in records(stage1.workspace, 1, "train")])
    plain, fast = runs
    assert fast == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("error", [RuntimeError, TritonMissing])
def test_without_a_compiler_a_warning_says_so(
    stage1: Trained, monkeypatch: pytest.MonkeyPatch, error: Callable[[Any], Exception]
) -> None:
    def broken(*_: object) -> None:
        raise error("a working triton installation. It is missing\nmore" if error is RuntimeError else None)

    monkeypatch.setattr(precision, "_COMPILER", broken)
    with pytest.raises(
        ConfigError,
        match=r"--compile: .* cannot be compiled here \(.*a working triton installation\..*\); install what",
    ):
        train(stage1.workspace, 1, stage1.config, fresh=True, compiled=True)


def test_both_stages_train_in_lower_precision(stage1: Trained) -> None:
    for stage in (1, 2):
        train(stage1.workspace, stage, stage1.config, fresh=True)
        plain = records(stage1.workspace, stage, "train")
        train(stage1.workspace, stage, stage1.config, fresh=True, precision="bf16")
        lower = records(stage1.workspace, stage, "train")
        assert len(lower) == EPOCHS
        for expected, record in zip(plain, lower, strict=True):
            assert record["loss"] != expected["loss"]
            assert record["loss"] == pytest.approx(expected["loss"], rel=0.1)
