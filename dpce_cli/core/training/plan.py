"""What a stage would train, and what it would take, worked out without weights and without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dpce_cli.core.config import Config
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.progress import Reporter
from dpce_cli.core.training.batches import TrainingSet
from dpce_cli.core.training.memory import training_memory
from dpce_cli.core.training.optimisation import learning_rate, parameter_groups
from dpce_cli.core.training.options import WordTable, check_shares
from dpce_cli.core.workspace.dataset import PreparedDataset


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
    """Bytes on each device, as `training_memory` estimates them."""


def plan_stage(
    dataset: PreparedDataset,
    config: Config,
    words: WordTable,
    *,
    stage: int,
    feature_cache: bool,
    classes: int,
    processes: int = 1,
) -> StagePlan:
    """Size up a stage on torch's `meta` device, which holds no numbers.

    Raises:
        ConfigError: a batch has fewer photos than there are processes.
    """
    check_shares(config, stage, processes)
    settings = config.stage(stage)
    with torch.device("meta"):
        model = DualEncoder(config, vocabulary_size=len(words.vocabulary), word_dim=words.word_dim, instances=classes)
    groups = parameter_groups(model, settings.multipliers)
    steps = TrainingSet(
        dataset, config, words.vocabulary, model.image_encoder, stage=stage, cache=None, workers=0, reporter=Reporter()
    ).steps_per_epoch
    rates = [learning_rate(settings, step, steps) for step in range(steps * settings.epochs)]
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
        memory=training_memory(
            config,
            stage=stage,
            vocabulary=len(words.vocabulary),
            word_dim=words.word_dim,
            classes=classes,
            feature_cache=feature_cache,
            processes=processes,
        ),
    )
