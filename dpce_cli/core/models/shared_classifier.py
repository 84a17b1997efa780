"""W_share: the softmax over all training images that both encoders share (Zheng et al. 2020, section 4.1), at any size.

Logits of all classes are never held at once: they are made for some classes at a time, and made again for the gradient.
Of several processes, each holds a share of the classes, as in Partial FC (An et al. 2022, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.processes.collectives import maximum_in_place, rank, share, sum_in_place
from dpce_cli.core.seeding import derived_seed

# Logits that are held at a time: 32 MiB of float32.
_LOGITS = 2**23


class SharedClassifier(nn.Module):
    """One weight matrix over all training images for both encoders.

    Args:
        scale: 0 gives the paper's plain inner product. Above 0, embeddings and class weights are L2-normalised and
            their cosine is multiplied by `scale`: on small data sets the text loss leaves its plateau, the logarithm
            of the number of instances, many epochs sooner.
        sample_rate: share of the classes that a step computes and updates: those of its batch, and others at random
            (An et al. 2022, section 3.2). 1 is the paper's exact softmax.
    """

    def __init__(
        self, *, instances: int, embedding_dim: int, bias: bool, scale: float, sample_rate: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(instances, embedding_dim))
        self.bias = nn.Parameter(torch.zeros(instances)) if bias else None
        self.instances, self.scale, self.sample_rate = instances, scale, sample_rate
        self.classes = range(instances)
        """Those whose weights are here."""
        self._rows: Tensor | None = None
        self._whole: dict[nn.Parameter, Tensor] = {}

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weights from 0.1 * N(0, sqrt(2 / instances)), as the authors' code does; for cosines, length 1."""
        dim = self.weight.shape[1]
        std = 1 / math.sqrt(dim) if self.scale else 0.1 * math.sqrt(2.0 / self.instances)
        # In parts, so that other processes' classes take no memory; of multiples of 16, which change no number.
        size = max(1, _LOGITS // dim // 16) * 16
        first, end = self.classes.start, self.classes.stop
        with torch.no_grad():
            for start in range(0, end, size):
                drawn = self.weight.new_empty(min(size, self.instances - start), dim)
                own = drawn.normal_(0.0, std, generator=generator)[max(0, first - start) : end - start]
                at = max(0, start - first)
                self.weight[at : at + len(own)] = own

    def keep_share(self) -> None:
        """Let go of the classes that other processes hold: of no number yet drawn or loaded, they took no memory."""
        mine = share(len(self.classes))
        self.classes = self.classes[mine]
        for parameter in self.parameters():
            parameter.data = parameter.data[mine].clone()

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits `(batch, classes)` of embeddings `(batch, embedding_dim)`."""
        return self._logits(embeddings, self.weight, self.bias)

    def _logits(self, embeddings: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.scale:
            return self.scale * F.linear(F.normalize(embeddings, dim=1), F.normalize(weight, dim=1), bias)
        return F.linear(embeddings, weight, bias)

    def instance_losses(
        self, embeddings: Tensor, instance_ids: Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every embedding: each image with its captions is a class (eq. 4 to 7).

        Args:
            embeddings: `(batch, embedding_dim)`, those of all processes on every process.
            instance_ids: `(batch,)`, the class each belongs to.
            label_smoothing: share of the target spread over all classes, sampled ones where they are; the paper uses
                none.

        Returns:
            Losses `(batch,)`, and whether no other class has a larger logit, `(batch,)`; equal on every process.
        """
        target = instance_ids - self.classes.start
        target = target.where((target >= 0) & (target < len(self.classes)), -1)
        weight, bias, target = self._sampled(target) if self.sample_rate < 1 else (self.weight, self.bias, target)
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return cast(
            tuple[Tensor, Tensor],
            _CrossEntropy.apply(embeddings, weight, bias, target, self._logits, label_smoothing),
        )

    def _sampled(self, target: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Rows of a step's classes, as leaves, and the targets among them."""
        self._forget_sample()
        count = len(self.classes)
        kept = min(count, max(math.ceil(self.sample_rate * count), len(target)))
        generator = torch.Generator(target.device)
        generator.manual_seed(derived_seed(torch.initial_seed(), "classes", rank()))
        order = torch.rand(count, generator=generator, device=target.device)
        order.scatter_reduce_(0, target.clamp(min=0), (target >= 0).float() * 2, "amax")
        self._rows = rows = order.topk(kept).indices.sort().values
        leaves = []
        for parameter in (self.weight, self.bias):
            leaf = None
            if parameter is not None:
                leaf = parameter.detach()[rows].requires_grad_(parameter.requires_grad)
                if leaf.requires_grad:
                    leaf.register_post_accumulate_grad_hook(self._stand_in(parameter))
            leaves.append(leaf)
        return cast(Tensor, leaves[0]), leaves[1], torch.searchsorted(rows, target).where(target >= 0, -1)

    def _stand_in(self, parameter: nn.Parameter) -> Callable[[Tensor], None]:
        def put(leaf: Tensor) -> None:
            self._whole[parameter] = parameter.data
            parameter.data, parameter.grad = leaf.detach(), leaf.grad

        return put

    def _forget_sample(self) -> None:
        for parameter, whole in self._whole.items():
            parameter.data, parameter.grad = whole, None
        self._whole.clear()
        self._rows = None

    def attach_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Let `optimizer` see, of weights and its own state, a step's sample only, from the backward pass to its step.

        Classes outside of the sample have neither momentum nor weight decay in that step.
        """
        states: dict[nn.Parameter, dict[str, Any]] = {}

        def take(*_: Any) -> None:
            for parameter, whole in self._whole.items():
                states[parameter] = optimizer.state[parameter]
                optimizer.state[parameter] = {
                    key: value[self._rows] if isinstance(value, Tensor) and value.shape == whole.shape else value
                    for key, value in states[parameter].items()
                }

        def put_back(*_: Any) -> None:
            for parameter, whole in self._whole.items():
                before, after = states.pop(parameter), optimizer.state[parameter]
                for key, value in after.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        old = before.get(key)
                        after[key] = torch.zeros_like(whole) if old is None else old
                        after[key][self._rows] = value
                whole[self._rows] = parameter.data
            self._forget_sample()

        optimizer.register_step_pre_hook(take)
        optimizer.register_step_post_hook(put_back)


class _CrossEntropy(torch.autograd.Function):
    """Of embeddings `(batch, dim)` and the class weights of all processes; targets of other processes' classes are -1.

    Zheng et al. 2020, eq. 4 to 7, with the softmax of An et al. 2022, section 3.1: processes exchange three numbers an
    embedding, and the gradient of the embeddings.
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
        ahead = torch.zeros_like(embeddings)
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
            ahead += first
            for value, other in zip(whole, others, strict=False):
                assert value is not None
                value[part] = other
        return sum_in_place(ahead), *whole, None, None, None


def _parts(embeddings: Tensor, weight: Tensor) -> Iterator[slice]:
    size = max(1, _LOGITS // max(1, len(embeddings)))
    return (slice(start, min(start + size, len(weight))) for start in range(0, len(weight), size))


def _column(target: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Each target's column `(batch, 1)` among the classes of `part`, and whether it is one of them."""
    here = (target >= part.start) & (target < part.stop)
    return (target - part.start).where(here, 0)[:, None], here
