"""A moving average of the weights, which embeds what it was not trained on better than the weights do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dpce_cli.core.config import StageConfig
from dpce_cli.core.models.dual_encoder import DualEncoder


def averaged(model: DualEncoder, stage: StageConfig, *, frozen_backbone: bool) -> dict[str, Tensor]:
    """What of a model is averaged: the encoders but for a frozen CNN; the classifier takes no part in retrieval."""
    if not stage.average_decay:
        return {}
    others = ("shared_classifier.", "image_encoder.backbone.") if frozen_backbone else ("shared_classifier.",)
    return {
        name: value
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not name.startswith(others)
    }


class WeightAverage:
    """The exponential moving average of the encoders' weights and batch norm statistics, if the stage has one.

    Departs from Zheng et al. 2020, who have none. The decay is less than `average_decay` in the first steps, so that
    what the run began with is soon forgotten.
    """

    def __init__(self, model: DualEncoder, stage: StageConfig, *, frozen_backbone: bool) -> None:
        self._decay = stage.average_decay
        self._live = averaged(model, stage, frozen_backbone=frozen_backbone)
        self.values = {name: value.clone() for name, value in self._live.items()}
        """By their names in the model's state dict."""

    def update(self, step: int) -> None:
        """Take in the weights after `step` finished steps."""
        if self.values:
            average = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))
            average(list(self.values.values()), list(self._live.values()), step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the average for weights."""
        kept = {name: value.clone() for name, value in self._live.items()}
        copy_values(self.values, self._live)
        try:
            yield
        finally:
            copy_values(kept, self._live)


def copy_values(values: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> None:
    """Give the tensors in `to` the values of those of the same name."""
    for name, tensor in to.items():
        tensor.copy_(values[name])
