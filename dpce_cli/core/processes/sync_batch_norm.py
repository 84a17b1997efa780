"""Batch norm over the batches of all processes."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from dpce_cli.core.processes.collectives import sum_in_place, world_size

M = TypeVar("M", bound=nn.Module)


class _SumWithGradient(torch.autograd.Function):
    """A sum over the processes, with the gradients of all processes that use it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_in_place(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_in_place(gradient.contiguous().clone())


class _SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes on CPUs; PyTorch's `SyncBatchNorm` runs on GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        exact = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.dim())]
        count = sum_in_place(torch.tensor(float(input.numel() // input.shape[1]), dtype=torch.float64)).item()
        mean = _SumWithGradient.apply(exact.sum(axes)) / count
        centred = exact - mean.view(shape)
        variance = _SumWithGradient.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        output: Tensor = normal * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)


def synchronise_batch_norms(module: M, device: torch.device) -> M:
    """Let the batch norms of `module` use the statistics of all processes' batches; the parameters stay the same."""
    if world_size() == 1:
        return module
    if device.type == "cuda":
        return cast(M, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            child.__class__ = _SyncedBatchNorm  # type: ignore[assignment]  # keeps parameters and their hooks
    return module
