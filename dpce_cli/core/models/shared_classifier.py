"""W_share: the classifier over all training images that both encoders share (Zheng et al. 2020, section 4.1).

As in Partial FC (An et al. 2022, section 3), each of several processes has a share of the classes, and a step may use a
sample of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.models import partial_fc
from dpce_cli.core.models.partial_fc import instance_losses_in_parts
from dpce_cli.core.processes.collectives import rank, share
from dpce_cli.core.seeding import derived_seed


class SharedClassifier(nn.Module):
    """One weight matrix over all training images for both encoders.

    Args:
        scale: with 0, logits are inner products, as in the paper. With a larger number, they are cosines multiplied by
            `scale`: on small data sets, the text loss leaves its plateau, the logarithm of the number of instances,
            many epochs earlier.
        sample_rate: share of the classes that a step computes and updates: the classes of the batch, and others at
            random (An et al. 2022, section 3.2). 1 is the paper's exact softmax.
    """

    def __init__(
        self, *, instances: int, embedding_dim: int, bias: bool, scale: float, sample_rate: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(instances, embedding_dim))
        self.bias = nn.Parameter(torch.zeros(instances)) if bias else None
        self.instances, self.scale, self.sample_rate = instances, scale, sample_rate
        self.classes = range(instances)
        """The classes whose weights are in this process."""
        self._rows: Tensor | None = None
        self._whole: dict[nn.Parameter, Tensor] = {}

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weights from 0.1 * N(0, sqrt(2 / instances)), as the authors' code does; for cosines, length 1."""
        dim = self.weight.shape[1]
        std = 1 / math.sqrt(dim) if self.scale else 0.1 * math.sqrt(2.0 / self.instances)
        # In parts, so that the classes of other processes take no memory. Parts of a multiple of 16 rows give the same
        # numbers as one part.
        size = max(1, partial_fc.LOGITS_AT_A_TIME // dim // 16) * 16
        first, end = self.classes.start, self.classes.stop
        with torch.no_grad():
            for start in range(0, end, size):
                drawn = self.weight.new_empty(min(size, self.instances - start), dim)
                own = drawn.normal_(0.0, std, generator=generator)[max(0, first - start) : end - start]
                at = max(0, start - first)
                self.weight[at : at + len(own)] = own

    def keep_share(self) -> None:
        """Keep this process's classes only. Before weights are drawn or loaded, the others have taken no memory."""
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
        """`losses.instance_loss` of every embedding: each image with its captions is a class (eq. 4 to 7).

        Args:
            embeddings: `(batch, embedding_dim)`, those of all processes on every process.
            instance_ids: `(batch,)`, the class each belongs to.
            label_smoothing: share of the target that is spread over all classes (or all sampled classes); the paper
                uses none.

        Returns:
            Losses `(batch,)`, and whether no other class has a larger logit, `(batch,)`; equal on every process.
        """
        target = instance_ids - self.classes.start
        target = target.where((target >= 0) & (target < len(self.classes)), -1)
        weight, bias, target = self._sampled(target) if self.sample_rate < 1 else (self.weight, self.bias, target)
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return instance_losses_in_parts(embeddings, weight, bias, target, self._logits, label_smoothing)

    def _sampled(self, target: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The weights and biases of a step's sampled classes, as leaf tensors, and the targets among these classes."""
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
        """Let each step of `optimizer` update only the sampled classes, with their part of the optimizer's state.

        Momentum and weight decay do not change the other classes in this step.
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
