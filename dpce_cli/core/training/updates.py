"""Sum the gradients of the parts of a step, clip them and update the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpce_cli.core.processes.collectives import any_process, sum_in_place
from dpce_cli.core.training.optimisation import set_learning_rate
from dpce_cli.core.training.precision import Precision


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite; sums them, which takes no memory."""
    return all(bool(value.sum().isfinite()) for value in values)


class Updater:
    """Sums the gradients of the parts of a step, clips them and updates the weights.

    Args:
        clip_norm: largest L2 norm of all gradients together; 0: no limit.
        precision: with "fp16", losses are scaled so that gradients do not vanish. A step whose gradients overflow is
            skipped, and the scale is halved (Micikevicius et al. 2018, section 3.2).
        shared_out: parameters of which each process has a part.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float,
        precision: Precision,
        device: torch.device,
        shared_out: Sequence[nn.Parameter],
    ) -> None:
        self.optimizer, self.clip_norm, self.shared_out = optimizer, clip_norm, shared_out
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of one part and add them to those of the other parts."""
        self.scaler.scale(loss).backward()

    def step(self, rate: float, *, measure: bool) -> float | None:
        """Update the weights; the learning rate of each group is `rate` times its multiplier.

        Returns:
            The norm of all gradients before clipping, if `measure` is true.
        """
        set_learning_rate(self.optimizer, rate)
        norm = None
        if self.scaler.is_enabled():
            self._agree_on_overflow()
            self.scaler.unscale_(self.optimizer)
        if self.clip_norm or measure:
            norm = self._gradient_norm()
            if self.clip_norm and norm > self.clip_norm:
                for gradient in self._gradients():
                    gradient.mul_(self.clip_norm / norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm if measure else None

    def _gradients(self) -> list[Tensor]:
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _gradient_norm(self) -> float:
        gradients = self._gradients()
        squares = torch.stack([gradient.norm() for gradient in gradients]).square()
        own = {id(parameter.grad) for parameter in self.shared_out}
        is_own = torch.tensor([id(gradient) in own for gradient in gradients], device=squares.device)
        return float((squares[~is_own].sum() + sum_in_place(squares[is_own].sum())).sqrt())

    def _agree_on_overflow(self) -> None:
        """Skip the step on all processes if it overflows on one: only their own parameters can differ."""
        own = [parameter.grad for parameter in self.shared_out if parameter.grad is not None]
        (overflow,) = any_process(not all_finite(own))
        if overflow:
            for gradient in own:
                gradient.fill_(math.inf)

    @property
    def scale(self) -> float:
        """The factor on the loss before its gradients are computed; 1 except with "fp16"."""
        return self.scaler.get_scale()

    def state(self) -> dict[str, Any]:
        """State dict of the loss scale; empty except with "fp16"."""
        return self.scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned; a run that changed its precision begins with the usual scale.

        Raises:
            ValueError: `state` is something else.
        """
        if state and not (
            state.keys() == torch.amp.GradScaler("cpu").state_dict().keys()
            and all(type(value) in (int, float) and 0 <= value < math.inf for value in state.values())
            and state["scale"] > 0
        ):
            raise ValueError("its loss scale cannot be used")
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
