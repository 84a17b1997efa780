"""How large a stage is: parameters, steps, memory and disk space, worked out without weights on the `meta` device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpce_cli.core.config import Config, RankingStageConfig, StageConfig
from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.progress import Reporter
from dpce_cli.core.training.batches import TrainingSet
from dpce_cli.core.training.optimisation import STATES, ParameterGroup, cached_kind, freeze, parameter_groups
from dpce_cli.core.training.options import WordTable, check_shares
from dpce_cli.core.training.peak_memory import PeakMemory
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.feature_cache import Kind, features_shape


@dataclass(frozen=True, kw_only=True)
class StageSize:
    """The size of a stage; memory and disk space in bytes."""

    groups: list[ParameterGroup]
    parameters: dict[str, int]
    """Numbers in the image encoder, the text encoder and the shared classifier."""
    epochs: int
    steps_per_epoch: int
    memory: dict[str, int]
    """On each device, as `training_memory` estimates it."""
    memory_to_save: int
    """Besides, on the machine of process 0, while it writes a checkpoint: all classes with the optimizer's state."""
    disk: dict[str, int]
    """What the stage and extract-features write."""


def size_stage(
    config: Config,
    *,
    stage: int,
    images: int,
    classes: int,
    captions_per_image: float,
    vocabulary: int,
    word_dim: int,
    processes: int,
    feature_cache: bool,
) -> StageSize:
    """Work out the size of a stage.

    Args:
        images: training photos with a caption.
        classes: of the instance loss; as many as photos, unless photos share an identity.

    Raises:
        ConfigError: a batch has fewer photos than there are processes, or the numbers are too large for torch.
    """
    check_shares(config, stage, processes)
    settings = config.stage(stage)
    try:
        with torch.device("meta"):
            model = DualEncoder(config, vocabulary_size=vocabulary, word_dim=word_dim, instances=classes)
        memory = training_memory(
            config, stage=stage, vocabulary=vocabulary, word_dim=word_dim, classes=classes,
            feature_cache=feature_cache, processes=processes,
        )  # fmt: skip
    except (RuntimeError, OverflowError, TypeError) as error:  # torch counts sizes in 64 bits
        raise ConfigError(
            f"stage {stage} cannot be this large ({str(error).splitlines()[0][:120]}); choose fewer photos, or smaller "
            "values of --set"
        ) from error
    groups = parameter_groups(model, settings.multipliers)
    states = STATES[settings.optimizer]
    weights = sum(value.nbytes for value in model.state_dict().values())
    learning = sum(value.nbytes for group in groups if group.multiplier for value in group.parameters)
    rows = sum(value.nbytes for value in model.shared_classifier.parameters())
    disk = {}
    if feature_cache and (kind := cached_kind(model, settings.multipliers)):
        views = 1 + config.image.mirror + config.image.cached_crops
        kinds: set[Kind] = {kind, "maps"} if config.image.frozen_until else {kind}
        with torch.device("meta"):
            numbers = sum(math.prod(features_shape(model.image_encoder, kind)) for kind in kinds)
        disk["cached features"] = 2 * images * views * numbers
    disk["last.pt"], disk["best.pt"] = weights + states * learning, weights
    disk["embeddings"] = round(images * (1 + captions_per_image) * config.model.embedding_dim * 4)
    return StageSize(
        groups=groups,
        parameters={
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in model.named_children()
            if list(part.parameters())
        },
        epochs=settings.epochs,
        steps_per_epoch=max(1, images // settings.batch_size),
        memory=memory,
        memory_to_save=rows * (1 + states) if processes > 1 else 0,
        disk=disk,
    )


def size_for_dataset(
    dataset: PreparedDataset,
    config: Config,
    words: WordTable,
    *,
    stage: int,
    classes: int,
    processes: int,
    feature_cache: bool,
) -> StageSize:
    """`size_stage` of a prepared data set, all of whose photos can be read.

    Raises:
        ConfigError: as `size_stage`.
        DataError: there are too few training photos.
    """
    with torch.device("meta"):
        model = DualEncoder(config, vocabulary_size=len(words.vocabulary), word_dim=words.word_dim, instances=1)
    training_set = TrainingSet(
        dataset, config, words.vocabulary, model.image_encoder, stage=stage, cache=None, workers=0, reporter=Reporter()
    )
    images = len(training_set.usable)
    return size_stage(
        config,
        stage=stage,
        images=images,
        classes=classes,
        captions_per_image=len(training_set.image_of_text) / images,
        vocabulary=len(words.vocabulary),
        word_dim=words.word_dim,
        processes=processes,
        feature_cache=feature_cache,
    )


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
    """Bytes in float32 on each device: what stays there, and the peak of a step.

    Not counted: what single operations need for themselves, and what CUDA, cuDNN, NCCL and the memory allocator keep.

    Returns:
        "weights", "optimizer", "gradients in exchange" where there are several processes, and "activations and
        gradients": the most that a step holds at a time.
    """
    settings = config.stage(stage)
    photos = settings.batch_size // settings.accumulation_steps
    texts = photos * settings.captions_per_image
    own = math.ceil(classes / processes)
    sampled = min(own, max(math.ceil(config.model.classifier_sample_rate * own), photos + texts))
    dense = replace(config, model=replace(config.model, classifier_sample_rate=1.0))
    with torch.device("meta"):
        model = DualEncoder(dense, vocabulary_size=vocabulary, word_dim=word_dim, instances=sampled)
    groups = parameter_groups(model, settings.multipliers)
    freeze(groups)
    model.train()
    kind = cached_kind(model, settings.multipliers) if feature_cache else None
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
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)
    peak = PeakMemory()
    with torch.device("meta"), peak:
        for _ in range(min(2, settings.accumulation_steps)):  # the second part of a step finds gradients
            take_step(model, config, settings, photos, texts, processes, cached=kind)
    return {**kept, "activations and gradients": max(peak.bytes, learning + states * rows if sampled < own else 0)}


def take_step(
    model: DualEncoder,
    config: Config,
    stage: StageConfig,
    photos: int,
    texts: int,
    processes: int,
    *,
    cached: Kind | None,
) -> None:
    """Run the forward and backward pass of one process on torch's default device."""
    side = config.image.crop
    # Batch norms of several processes see the whole batch; here, where there is one process, it must be 2 at least.
    own_photos, own_texts = (max(2, math.ceil(total / processes)) for total in (photos, texts))
    view = features_shape(model.image_encoder, cached) if cached else (3, side, side)
    model.image_encoder.train()
    image = model.image_encoder(torch.zeros(own_photos, *view, dtype=torch.float16 if cached else torch.uint8))
    if isinstance(stage, RankingStageConfig) and stage.negatives == "hardest_in_pool":
        pool = math.ceil(stage.negative_pool / processes)
        with torch.no_grad():
            model.text_encoder.eval()(torch.zeros(pool, config.text.max_words, dtype=torch.long))
        model.text_encoder.train()
    # With stage2.detail_weight, up to one swapped caption for each caption.
    encoded = 2 * own_texts if isinstance(stage, RankingStageConfig) and stage.detail_weight else own_texts
    text = model.text_encoder(torch.zeros(encoded, config.text.max_words, dtype=torch.long))[:own_texts]
    if processes > 1:
        image, text = (part.repeat(processes, 1) for part in (image, text))
    ids = torch.zeros(len(image) + len(text), dtype=torch.long)
    losses = model.instance_losses(image, text, ids[: len(image)], ids[len(image) :], stage.label_smoothing)
    (losses.image_loss + losses.text_loss).backward()


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
