"""Taking over an optimizer's state from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpce_cli.core.workspace.checkpoint import is_like

_NAMES = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}
"""What each optimizer keeps for a parameter: one number per weight, and AdamW the steps it has taken."""


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take over what the optimizer keeps for each parameter.

    Learning rates and the other settings of the groups follow from configuration and step; those in `saved` do not
    count.

    Raises:
        ValueError: `saved` is not the state of such an optimizer over the same parameters.
    """
    if not saved:
        raise ValueError("it has no state of an optimizer, as best.pt has none")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names, state, own = _NAMES[type(optimizer)], saved["state"], optimizer.state_dict()
    # AdamW has no state until float16 first takes a step without an overflow.
    if (state or own["state"]) and state.keys() != set(range(len(parameters))):
        raise ValueError("the optimizer's state is of other parameters")
    for index, values in state.items():
        if values.keys() != names:
            raise ValueError(f"the optimizer's state of parameter {index} is not {', '.join(sorted(names))}")
        for name, value in values.items():
            example = torch.zeros(()) if name == "step" else parameters[index]
            if not (is_like(value, example) and _is_sound(name, value)):
                raise ValueError(f"{name} of parameter {index} in the optimizer's state cannot be used")
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def _is_sound(name: str, value: Tensor) -> bool:
    return bool(value.sum().isfinite()) and (name in ("momentum_buffer", "exp_avg") or bool((value >= 0).all()))
