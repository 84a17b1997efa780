"""What a stage would train, and what it would take, worked out without weights and without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dpce_cli.core.config import Config, StageConfig
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.progress import Reporter
from dpce_cli.core.training.batches import TrainingSet
from dpce_cli.core.training.optimisation import freeze, learning_rate, parameter_groups
from dpce_cli.core.training.options import WordTable
from dpce_cli.core.workspace import PreparedDataset


@dataclass(frozen=True)
class PlannedGroup:
    """One parameter group."""

    name: str
    parameters: int
    first_rate: float
    """Learning rate at the first step; 0 where the group is frozen."""
    highest_rate: float


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A stage before it is begun."""

    groups: tuple[PlannedGroup, ...]
    parameters: dict[str, int]
    """Of the image encoder, the text encoder and the shared classifier."""
    classes: int
    vocabulary: int
    word_dim: int
    word_vectors: str
    epochs: int
    steps_per_epoch: int
    """If every photo can be read."""
    memory: dict[str, int]
    """Estimated bytes on the device: weights, gradients, optimizer, activations."""


def plan_stage(
    dataset: PreparedDataset, config: Config, words: WordTable, *, stage: int, feature_cache: bool, classes: int
) -> StagePlan:
    """Size up a stage on torch's `meta` device, which holds no numbers.

    The activations are what backpropagation keeps of one step, counted while the networks run without data. Not
    counted: what a step needs for a moment only, and what CUDA, cuDNN and the memory allocator keep for themselves.
    """
    settings: StageConfig = config.stage1 if stage == 1 else config.stage2
    with torch.device("meta"):
        model = DualEncoder(
            config, vocabulary_size=len(words.vocabulary), word_dim=words.word_dim, instances=classes
        ).train()
    groups = parameter_groups(model, settings.multipliers)
    freeze(groups)
    frozen = not any(group.multiplier for group in groups if group.name.startswith("backbone"))
    if frozen:
        model.image_encoder.backbone.eval()
    steps = TrainingSet(
        dataset, config, words.vocabulary, model.image_encoder, stage=stage, cache=None, workers=0, reporter=Reporter()
    ).steps_per_epoch
    rates = [learning_rate(settings, step, steps) for step in range(steps * settings.epochs)]
    learning = sum(4 * group.size for group in groups if group.multiplier)
    return StagePlan(
        groups=tuple(
            PlannedGroup(group.name, group.size, rates[0] * group.multiplier, max(rates) * group.multiplier)
            for group in groups
        ),
        parameters={
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in model.named_children()
            if list(part.parameters())
        },
        classes=classes,
        vocabulary=len(words.vocabulary),
        word_dim=words.word_dim,
        word_vectors=words.source,
        epochs=settings.epochs,
        steps_per_epoch=steps,
        memory={
            "weights": sum(value.nbytes for value in model.state_dict().values()),
            "gradients": learning,
            "optimizer": learning * (2 if settings.optimizer == "adamw" else 1),
            "activations": _activations(model, config, settings, cached=frozen and feature_cache),
        },
    )


def _activations(model: DualEncoder, config: Config, stage: StageConfig, *, cached: bool) -> int:
    """Bytes that autograd keeps of the forward pass of a step's part for the backward pass, parameters left out."""
    kept: dict[StorageWeakRef, int] = {}
    own = {StorageWeakRef(value.untyped_storage()) for value in model.state_dict().values()}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        kept[StorageWeakRef(storage)] = storage.nbytes()
        return value

    def give(value: Any) -> Any:
        return value

    side, photos = config.image.crop, stage.batch_size // stage.accumulation_steps
    texts = photos * stage.captions_per_image
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, give):
        images = (
            torch.empty(photos, model.image_encoder.feature_dim)
            if cached
            else torch.empty(photos, 3, side, side, dtype=torch.uint8)
        )
        image = model.image_encoder(images)
        text = model.text_encoder(torch.empty(texts, config.text.max_words, dtype=torch.long))
        keep(torch.cat([model.classifiable(image), model.classifiable(text)]))
    return sum(size for storage, size in kept.items() if storage not in own)
