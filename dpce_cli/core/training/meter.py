"""Means and speeds for the next line of the log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Meter:
    """Sums of losses, accuracies and time since the last line of the log.

    Args:
        steps: number of steps since the last line.
        sums: losses and accuracies of these steps.
    """

    def __init__(self, steps: int, sums: Mapping[str, Tensor]) -> None:
        self.steps, self.sums = steps, dict(sums)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Do not count the time until now."""
        self._photos, self._waited, self._start = 0, 0.0, time.perf_counter()

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; measures the time in which the device waits for them."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, values: Mapping[str, Tensor], *, photos: int) -> None:
        """Add a part's shares of the losses and accuracies of its step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())).to(value.device) + value.detach()
        self._photos += photos

    def read(self) -> tuple[dict[str, float], float, float]:
        """Means per step, photos per second and the share of time spent waiting for data; then start again at 0."""
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        seconds = time.perf_counter() - self._start
        speed, waited = self._photos / seconds, self._waited / seconds
        self.steps = 0
        self.sums.clear()
        self.restart_clock()
        return means, speed, waited
