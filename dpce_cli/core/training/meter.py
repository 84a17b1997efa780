"""What a run measures from one line of its log to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Meter:
    """Sums of the losses and accuracies of steps, and where the time went.

    Args:
        steps: since the last line.
        sums: of these steps.
    """

    def __init__(self, steps: int, sums: Mapping[str, Tensor]) -> None:
        self.steps, self.sums = steps, dict(sums)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of the speeds what happened since the last line."""
        self._photos, self._waited, self._start = 0, 0.0, time.perf_counter()

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time that it takes to get them is time in which the device has nothing to do."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, values: Mapping[str, Tensor], *, photos: int) -> None:
        """Add what a part of a step, with so many photos, contributes to the step's values."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())).to(value.device) + value.detach()
        self._photos += photos

    def read(self) -> tuple[dict[str, float], float, float]:
        """Means of the values, photos per second and the share of the time spent waiting for data; then begin again."""
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        seconds = time.perf_counter() - self._start
        speed, waited = self._photos / seconds, self._waited / seconds
        self.steps = 0
        self.sums.clear()
        self.restart_clock()
        return means, speed, waited
