"""The messages of a run: its first lines, and the lines of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from dpce_cli.core.config import StageConfig
from dpce_cli.core.processes.collectives import lengths, world_size
from dpce_cli.core.retrieval.metrics import RetrievalMetrics
from dpce_cli.core.training.optimisation import ParameterGroup
from dpce_cli.core.training.options import StageJob

_FIELDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "learning_rate": ("lr", "{:.2g}".format),
    "gradient_norm": ("grad", "{:.2g}".format),
    "loss_scale": ("scale", "{:g}".format),
    "device_memory": ("memory", lambda size: f"{size / 2**30:.1f}GiB"),
    "data_wait": ("data wait", "{:.0%}".format),
    "images_per_second": ("img/s", "{:.0f}".format),
}


def log_fields(record: Mapping[str, float]) -> dict[str, str]:
    """A record of `metrics.jsonl`, formatted for the log.

    >>> log_fields({"image_loss": 3.21, "text_accuracy": 0.5, "learning_rate": 0.01})
    {'image loss': '3.210', 'text accuracy': '50.0%', 'lr': '0.01'}
    """
    fields = {}
    for name, value in record.items():
        usual = "{:.1%}".format if name.endswith("accuracy") else "{:.3f}".format
        label, shown = _FIELDS.get(name, (name.replace("_", " "), usual))
        fields[label] = shown(value)
    return fields


def opening_lines(job: StageJob, groups: Sequence[ParameterGroup], steps_per_epoch: int) -> Iterator[str]:
    """The first lines of a run: data, processes, word vectors, learning rates."""
    stage = job.settings
    yield (
        f"stage {job.number} on data set '{job.dataset.name}' (preset {job.config.preset}): "
        f"{job.dataset.instances} instances, {len(job.words.vocabulary)} words, "
        f"{stage.epochs} epochs of {steps_per_epoch} steps on {job.options.device}"
    )
    if world_size() > 1:
        parts = sorted(set(lengths(stage.batch_size)))
        yield (
            f"{world_size()} processes share each batch of {stage.batch_size} photos, "
            f"{' or '.join(map(str, parts))} each, and the classes; the learning rates are those of the whole "
            "batch and are not scaled"
        )
    yield f"word vectors: {job.words.source}"
    yield from optimisation_lines(stage, groups)


def optimisation_lines(stage: StageConfig, groups: Sequence[ParameterGroup]) -> Iterator[str]:
    """Optimizer, schedule and the learning rate of each parameter group."""
    parts = f", batches in {stage.accumulation_steps} parts" if stage.accumulation_steps > 1 else ""
    clip = f", gradient norm up to {stage.clip_norm:g}" if stage.clip_norm else ""
    yield (
        f"{stage.optimizer}, base learning rate {stage.learning_rate:g}, {stage.schedule} schedule{parts}{clip}; "
        "per group:"
    )
    for group in groups:
        rate = f"{stage.learning_rate * group.multiplier:.3g}" if group.multiplier else "frozen"
        yield f"  {group.name:<16} {group.size:>12,} parameters   lr {rate}"


def validation_record(metrics: RetrievalMetrics) -> dict[str, float]:
    """A validation for `metrics.jsonl`."""
    directions = {"i2t": metrics.image_to_text, "t2i": metrics.text_to_image}
    names = ("r1", "r5", "r10", "median_rank")
    return {"rsum": metrics.rsum} | {
        f"{direction}_{name}": getattr(values, name) for direction, values in directions.items() for name in names
    }


def validation_line(metrics: RetrievalMetrics) -> str:
    return (
        f"validation: R@1 {100 * metrics.image_to_text.r1:.1f}% image-to-text, "
        f"{100 * metrics.text_to_image.r1:.1f}% text-to-image, RSUM {metrics.rsum:.1f}"
    )
