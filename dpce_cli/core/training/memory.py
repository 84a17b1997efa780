"""What training takes of a device's memory, found by taking a step on torch's `meta` device, which holds no numbers."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpce_cli.core.config import Config, RankingStageConfig, StageConfig
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.training.optimisation import STATES, backbone_is_frozen, freeze, parameter_groups


def training_memory(
    config: Config,
    *,
    stage: int,
    vocabulary: int,
    word_dim: int,
    classes: int,
    feature_cache: bool,
    processes: int = 1,
) -> dict[str, int]:
    """Bytes of each of several devices, in float32: for what stays, and at the peak of a step.

    Not counted: what single operations need for themselves, and what CUDA, cuDNN, NCCL and the memory allocator keep.

    Returns:
        "weights", "optimizer", "gradients in exchange" of several processes, and "a step": activations, gradients and
        what is in between, as much as there is at a time.
    """
    settings = config.stage(stage)
    photos = settings.batch_size // settings.accumulation_steps
    texts = photos * settings.captions_per_image
    own = math.ceil(classes / processes)
    sampled = min(own, max(math.ceil(config.model.classifier_sample_rate * own), photos + texts))
    dense = replace(config, model=replace(config.model, classifier_sample_rate=1.0))
    with torch.device("meta"):
        model = DualEncoder(dense, vocabulary_size=vocabulary, word_dim=word_dim, instances=sampled).train()
    groups = parameter_groups(model, settings.multipliers)
    freeze(groups)
    if frozen := backbone_is_frozen(groups):
        model.image_encoder.backbone.eval()
    states = STATES[settings.optimizer]
    learning = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    weights = sum(value.nbytes for value in model.state_dict().values())
    rows = sum(value.nbytes for value in model.shared_classifier.parameters())
    whole = rows // sampled * own
    kept = {"weights": weights, "optimizer": states * learning}
    if config.model.classifier_sample_rate < 1:  # the sample is a copy
        kept = {"weights": weights + whole, "optimizer": states * (learning - rows + whole)}
    if processes > 1:
        kept["gradients in exchange"] = learning - rows
        for encoder in (model.image_encoder, model.text_encoder):
            for parameter in encoder.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_let_go)
    peak = PeakMemory()
    with torch.device("meta"), peak:
        for _ in range(min(2, settings.accumulation_steps)):  # the second part of a step finds gradients
            take_step(model, config, settings, photos, texts, processes, cached=frozen and feature_cache)
    return {**kept, "a step": max(peak.bytes, learning + states * rows if sampled < own else 0)}


def take_step(
    model: DualEncoder, config: Config, stage: StageConfig, photos: int, texts: int, processes: int, *, cached: bool
) -> None:
    """Forward and backward pass of one of several processes, on whatever torch's default device is."""
    side = config.image.crop
    own_photos, own_texts = math.ceil(photos / processes), math.ceil(texts / processes)
    shape = (own_photos, model.image_encoder.feature_dim) if cached else (own_photos, 3, side, side)
    image = model.image_encoder(torch.zeros(shape, dtype=torch.float16 if cached else torch.uint8))
    if isinstance(stage, RankingStageConfig) and stage.negatives == "hardest_in_pool":
        pool = math.ceil(stage.negative_pool / processes)
        with torch.no_grad():
            model.text_encoder.eval()(torch.zeros(pool, config.text.max_words, dtype=torch.long))
        model.text_encoder.train()
    text = model.text_encoder(torch.zeros(own_texts, config.text.max_words, dtype=torch.long))
    if processes > 1:
        image, text = (torch.cat([part] * processes) for part in (image, text))
    ids = torch.zeros(len(image) + len(text), dtype=torch.long)
    losses = model.instance_losses(image, text, ids[: len(image)], ids[len(image) :], stage.label_smoothing)
    (losses.image_loss + losses.text_loss).backward()


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made in the block hold at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self._now = 0
        self._known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._known | given:
                    self._known.add(storage._cdata)
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.bytes = max(self.bytes, self._now)
        return result

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._now -= size
