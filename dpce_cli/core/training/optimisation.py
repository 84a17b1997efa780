"""Parameter groups, learning rates and the optimizer (Zheng et al. 2020, section 5.1, and the released code)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import nn

from dpce_cli.core.config import LearningRates, StageConfig
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.workspace.feature_cache import Kind

FROZEN = "lower backbone"
"""The group of the parameters up to `ImageConfig.frozen_until`."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate multiplier."""

    name: str
    """A field of `LearningRates`, or `FROZEN`."""
    multiplier: float
    parameters: list[nn.Parameter]

    @property
    def size(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def parameter_groups(model: DualEncoder, multipliers: LearningRates) -> list[ParameterGroup]:
    """The parameters of the model, grouped by learning rate multiplier, without empty groups."""
    members: dict[str, list[nn.Parameter]] = {field.name: [] for field in dataclasses.fields(multipliers)}
    members[FROZEN] = []
    frozen = {f"image_encoder.backbone.{name}" for name in model.image_encoder.frozen_tensors}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_frozen = f"{module_name}.{name}" in frozen
            members[FROZEN if is_frozen else _kind(module_name, module, name)].append(parameter)
    return [
        ParameterGroup(name, getattr(multipliers, name, 0.0), parameters)
        for name, parameters in members.items()
        if parameters
    ]


def _kind(module_name: str, module: nn.Module, name: str) -> str:
    bias = name.endswith("bias")
    if module_name.startswith("image_encoder.backbone"):
        return "backbone_bias" if bias and not isinstance(module, nn.BatchNorm2d) else "backbone"
    if module_name == "shared_classifier":
        return "classifier_bias" if bias else "classifier"
    if isinstance(module, nn.Embedding):
        return "words"
    if isinstance(module, nn.BatchNorm1d):
        return "bn_shift" if bias else "bn_scale"
    return "bias" if bias else "weight"


def cached_kind(model: DualEncoder, multipliers: LearningRates) -> Kind | None:
    """What of the image CNN can be cached; None if all of it learns."""
    groups = parameter_groups(model, multipliers)
    if not any(group.multiplier for group in groups if group.name.startswith("backbone")):
        return "pooled"
    return "maps" if model.image_encoder.frozen_until else None


def freeze(groups: list[ParameterGroup]) -> None:
    """Let exactly the groups with a multiplier above 0 require gradients."""
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(group.multiplier > 0)


STATES = {"sgd": 1, "adamw": 2}
"""How many numbers an optimizer stores per weight."""


def build_optimizer(groups: list[ParameterGroup], stage: StageConfig) -> torch.optim.Optimizer:
    """The stage's optimizer over the groups that learn; the others are frozen."""
    freeze(groups)
    learning = [
        {"params": group.parameters, "multiplier": group.multiplier} for group in groups if group.multiplier > 0
    ]
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(learning, lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        learning, lr=stage.learning_rate, momentum=0.9, nesterov=True, weight_decay=stage.weight_decay, fused=True
    )
    # PyTorch leaves the buffers uninitialised if it skips the first step because float16 overflows.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def learning_rate(stage: StageConfig, step: int, steps_per_epoch: int) -> float:
    """The base learning rate of `step` (from 0), before the groups' multipliers."""
    epoch = step / steps_per_epoch
    warmup = min(1.0, (epoch + 1 / steps_per_epoch) / stage.warmup_epochs) if stage.warmup_epochs else 1.0
    if stage.schedule == "steps":
        return stage.learning_rate * warmup * 0.1 ** sum(epoch >= milestone for milestone in stage.milestones)
    return stage.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * epoch / stage.epochs))


def first_and_highest_rate(stage: StageConfig, steps_per_epoch: int) -> tuple[float, float]:
    """The base learning rate of the first step, and the highest one: it never rises after the warm-up."""
    warmup = min(math.ceil(stage.warmup_epochs * steps_per_epoch), stage.epochs * steps_per_epoch)
    rates = [learning_rate(stage, step, steps_per_epoch) for step in range(max(1, warmup))]
    return rates[0], max(rates)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
