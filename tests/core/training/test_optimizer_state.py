from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from dpce_cli.core.presets import build_preset
from dpce_cli.core.training.optimisation import ParameterGroup, build_optimizer
from dpce_cli.core.training.optimizer_state import load_optimizer_state


def _fresh(name: str, layer: nn.Linear) -> torch.optim.Optimizer:
    stage = replace(build_preset("scenes").stage1, optimizer=name, learning_rate=0.1)  # type: ignore[arg-type]
    return build_optimizer([ParameterGroup("weight", 2.0, list(layer.parameters()))], stage)


def _stepped(name: str, layer: nn.Linear) -> torch.optim.Optimizer:
    optimizer = _fresh(name, layer)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimizer_continues_with_the_state_and_its_own_settings(name: str) -> None:
    saved = _stepped(name, nn.Linear(3, 2)).state_dict()
    other = _stepped(name, nn.Linear(3, 2))
    settings = other.state_dict()["param_groups"]
    saved["param_groups"] = [{"lr": float("nan")}]
    load_optimizer_state(other, saved)
    assert other.state_dict()["param_groups"] == settings
    for index, values in saved["state"].items():
        assert all(torch.equal(other.state_dict()["state"][index][key], value) for key, value in values.items())


@pytest.mark.parametrize(("name", "kept"), [("sgd", [0]), ("sgd", []), ("adamw", [0]), ("adamw", [1])])
def test_a_state_that_lacks_a_parameter_is_refused(name: str, kept: list[int]) -> None:
    saved = _stepped(name, nn.Linear(3, 2)).state_dict()
    saved["state"] = {index: saved["state"][index] for index in kept}
    with pytest.raises(ValueError, match="the optimizer's state is of other parameters"):
        load_optimizer_state(_fresh(name, nn.Linear(3, 2)), saved)


def test_adamw_that_has_taken_no_step_has_no_state_and_can_be_continued() -> None:
    load_optimizer_state(_fresh("adamw", nn.Linear(3, 2)), _fresh("adamw", nn.Linear(3, 2)).state_dict())


def test_the_state_of_another_optimizer_is_refused() -> None:
    sgd, adamw = (_stepped(name, nn.Linear(3, 2)) for name in ("sgd", "adamw"))
    with pytest.raises(ValueError, match="the optimizer's state of parameter 0 is not momentum_buffer"):
        load_optimizer_state(sgd, adamw.state_dict())
    with pytest.raises(ValueError, match="the optimizer's state of parameter 0 is not exp_avg, exp_avg_sq, step"):
        load_optimizer_state(adamw, sgd.state_dict())
