"""What training takes on any number of photos and devices, before there is a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dpce_cli.core.config import Config
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.training.memory import training_memory
from dpce_cli.core.training.optimisation import STATES, backbone_is_frozen, parameter_groups
from dpce_cli.core.training.options import check_shares


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of one stage; sizes in bytes."""

    memory: dict[str, int]
    """Of each device, as `training_memory` estimates it."""
    steps_per_epoch: int
    epochs: int
    disk: dict[str, int]
    """Of what the stage and extract-features leave."""
    gathered: int
    """Memory of the machine of process 0, besides, while it writes a checkpoint: all classes with their state."""


def forecast(
    config: Config,
    *,
    stage: int,
    images: int,
    captions_per_image: int,
    vocabulary: int,
    processes: int,
    feature_cache: bool,
) -> Forecast:
    """Size up a stage, each photo a class of its own.

    Raises:
        ConfigError: a batch has fewer photos than there are processes.
    """
    check_shares(config, stage, processes)
    settings = config.stage(stage)
    with torch.device("meta"):
        model = DualEncoder(config, vocabulary_size=vocabulary, word_dim=config.model.word_dim, instances=images)
    groups = parameter_groups(model, settings.multipliers)
    cached = feature_cache and backbone_is_frozen(groups)
    states = STATES[settings.optimizer]
    classes = sum(value.nbytes for value in model.shared_classifier.parameters())
    weights = sum(value.nbytes for value in model.state_dict().values())
    learning = sum(value.nbytes for group in groups if group.multiplier for value in group.parameters)
    views = 1 + config.image.mirror + config.image.cached_crops
    embeddings = images * (1 + captions_per_image) * config.model.embedding_dim * 4
    return Forecast(
        memory=training_memory(
            config,
            stage=stage,
            vocabulary=vocabulary,
            word_dim=config.model.word_dim,
            classes=images,
            feature_cache=feature_cache,
            processes=processes,
        ),
        steps_per_epoch=max(1, images // settings.batch_size),
        epochs=settings.epochs,
        disk={
            **({"cached features": 2 * images * views * model.image_encoder.feature_dim} if cached else {}),
            "last.pt": weights + states * learning,
            "best.pt": weights,
            "embeddings of all": embeddings,
        },
        gathered=classes * (1 + states) if processes > 1 else 0,
    )
