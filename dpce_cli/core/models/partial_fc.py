"""The instance loss for many classes, in parts and in several processes.

It equals `losses.instance_loss`, but the logits of all classes are never in memory at once: they are computed for some
classes at a time, and again for the gradient. The classes are divided among the processes as in Partial FC (An et al.
2022, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from dpce_cli.core.processes.collectives import maximum_in_place, sum_in_place

LOGITS_AT_A_TIME = 2**23
"""The most logits in memory: 32 MiB in float32."""


def instance_losses_in_parts(
    embeddings: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    logits_of: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """`losses.instance_loss` of each embedding (eq. 4 to 7), before the mean; gradients for the first three arguments.

    Args:
        embeddings: `(batch, dim)`, those of all processes on every process.
        weight: `(own classes, dim)`, the weights of this process's classes.
        bias: `(own classes,)`
        target: `(batch,)`, the row of each embedding's class in `weight`; -1 for a class of another process.
        logits_of: computes `(batch, classes)` from embeddings and rows of weight and bias.
        label_smoothing: share of the target that is spread over all classes.

    Returns:
        Losses `(batch,)`, and whether no other class has a larger logit, `(batch,)`; equal on every process.
    """
    losses_and_hits = _CrossEntropy.apply(embeddings, weight, bias, target, logits_of, label_smoothing)
    return cast(tuple[Tensor, Tensor], losses_and_hits)


class _CrossEntropy(torch.autograd.Function):
    """The function and gradient of `instance_losses_in_parts`.

    The softmax over the classes of all processes is that of An et al. 2022, section 3.1: the processes exchange a few
    numbers per embedding, and the gradient of the embeddings.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        logits_of: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        highest = embeddings.new_full((len(embeddings),), -torch.inf)
        total, own, everything, classes = embeddings.new_zeros(4, len(embeddings))
        classes += len(weight)
        for part in _parts(embeddings, weight):
            logits = logits_of(embeddings, weight[part], None if bias is None else bias[part]).to(embeddings.dtype)
            column, here = _column(target, part)
            own += logits.gather(1, column)[:, 0].where(here, 0)
            everything += logits.sum(1)
            higher = highest.maximum(logits.amax(1))
            total = total * (highest - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(1)
            highest = higher
        overall = maximum_in_place(highest.clone())
        sums = torch.stack([total * (highest - overall).exp(), own, everything, classes])
        total, own, everything, classes = sum_in_place(sums)
        partition = total.log() + overall
        ctx.save_for_backward(embeddings, weight, bias, target, partition, classes)
        ctx.logits_of, ctx.label_smoothing = logits_of, label_smoothing
        device = "cpu" if embeddings.is_meta else embeddings.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        right = own >= overall
        ctx.mark_non_differentiable(right)
        return partition - (1 - label_smoothing) * own - label_smoothing / classes * everything, right

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, weight, bias, target, partition, classes = ctx.saved_tensors
        gradient_of_embeddings = torch.zeros_like(embeddings)
        whole = [None if value is None else torch.empty_like(value) for value in (weight, bias)]
        for part in _parts(embeddings, weight):
            inputs = [embeddings, weight[part], None if bias is None else bias[part]]
            inputs = [None if value is None else value.detach().requires_grad_() for value in inputs]
            with torch.enable_grad(), torch.autocast(cache_enabled=False, **ctx.autocast):
                logits = ctx.logits_of(*inputs)
            column, here = _column(target, part)
            slope = logits.detach().to(partition.dtype).sub(partition[:, None]).exp_()
            slope -= (ctx.label_smoothing / classes)[:, None]
            slope.scatter_add_(1, column, (ctx.label_smoothing - 1) * here.to(slope.dtype)[:, None])
            slope *= gradient[:, None]
            leaves = [value for value in inputs if value is not None]
            first, *others = torch.autograd.grad(logits, leaves, slope.to(logits.dtype))
            gradient_of_embeddings += first
            for value, other in zip(whole, others, strict=False):
                assert value is not None
                value[part] = other
        return sum_in_place(gradient_of_embeddings), *whole, None, None, None


def _parts(embeddings: Tensor, weight: Tensor) -> Iterator[slice]:
    size = max(1, LOGITS_AT_A_TIME // max(1, len(embeddings)))
    return (slice(start, min(start + size, len(weight))) for start in range(0, len(weight), size))


def _column(target: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Each target's column `(batch, 1)` among the classes of `part`, and whether the target is one of them."""
    here = (target >= part.start) & (target < part.stop)
    return (target - part.start).where(here, 0)[:, None], here
