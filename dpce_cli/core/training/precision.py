"""Mixed precision and compilation of the encoders and the classifier."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models.dual_encoder import DualEncoder

Precision = Literal["fp32", "bf16", "fp16"]
TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_COMPILER = "inductor"


def accelerate(model: DualEncoder, device: torch.device, precision: Precision, *, compiled: bool) -> None:
    """Make the encoders and the classifier compute in `precision`, and compile the encoders for training.

    Weights, embeddings and losses stay in float32. The filters of the image CNN have the memory format of its input
    (channels last). On a GPU, products of float32 matrices use TF32, whose inputs are rounded to 10 bits after the
    first; convolutions use it by PyTorch's default.

    Raises:
        ConfigError: at their first use, if they cannot be compiled.
    """
    model.image_encoder.backbone.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if precision == "fp32" and not compiled:
        return

    def lower() -> AbstractContextManager[Any]:
        return nullcontext() if precision == "fp32" else torch.autocast(device.type, TYPES[precision])

    def encoder(part: nn.Module) -> None:
        plain = part.forward
        fast = _compiled(plain) if compiled else plain

        def forward(inputs: Tensor) -> Tensor:
            with lower():
                embeddings: Tensor = (fast if part.training else plain)(inputs)
            return embeddings.float()

        part.forward = forward

    classifier = model.shared_classifier
    plain_losses = classifier.instance_losses

    def instance_losses(embeddings: Tensor, instance_ids: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
        with lower():
            return plain_losses(embeddings, instance_ids, label_smoothing)

    encoder(model.image_encoder)
    encoder(model.text_encoder)
    classifier.instance_losses = instance_losses  # type: ignore[method-assign]  # for this instance only, as `forward` above


def _compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    from torch._dynamo.exc import TorchDynamoException

    fast = torch.compile(function, backend=_COMPILER)

    def call(inputs: Tensor) -> Tensor:
        try:
            return fast(inputs)
        except TorchDynamoException as error:
            reason = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
            raise ConfigError(
                f"--compile: the encoders cannot be compiled here ({reason}); install what is missing, a C++ compiler "
                "or on a GPU Triton, or train without --compile"
            ) from error

    return call
