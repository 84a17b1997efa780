"""The state of a run: save it and load it, with any number of processes.

A checkpoint has the weights, the optimizer's state, float16's loss scale, the finished steps and the configuration.
Nothing else is needed: learning rates, the order of photos, crops, captions and dropout follow from seed and step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dpce_cli.core.config import differences
from dpce_cli.core.errors import CheckpointError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.processes.collectives import gather_objects, gather_to_first, rank, share, world_size
from dpce_cli.core.training.batches import TrainingSet
from dpce_cli.core.training.optimizer_state import load_optimizer_state
from dpce_cli.core.training.options import StageJob
from dpce_cli.core.training.stage_files import StageFiles
from dpce_cli.core.training.updates import Updater
from dpce_cli.core.workspace.checkpoint import Checkpoint, check_belongs, load_checkpoint, save_checkpoint

_MAY_CHANGE = ("learning_rate", "clip_norm")
"""A run may continue with other values of these settings: a lower learning rate saves a run that diverged."""


@dataclass
class TrainingState:
    """Weights, optimizer and progress."""

    model: DualEncoder
    updater: Updater
    step: int = 0
    """Number of finished steps."""
    epochs: int = 0
    """Number of finished epochs, including their validation."""
    best: dict[str, float] = field(default_factory=dict)
    """"rsum" and "epoch" of the best validation; empty before the first."""


def save_state(
    path: Path,
    job: StageJob,
    state: TrainingState,
    training_set: TrainingSet,
    *,
    unlogged: dict[str, Tensor],
    resumable: bool,
) -> None:
    """Write a checkpoint of the whole model: process 0 writes, but every process must call this.

    Args:
        unlogged: sums of the values that are not yet in metrics.jsonl.
        resumable: also write what training needs to continue.

    Raises:
        WorkspaceError: it cannot be written; what was at `path` stays.
    """
    model, optimizer = state.model.state_dict(), state.updater.optimizer.state_dict() if resumable else {}
    if optimizer:
        optimizer["state"] = {
            index: dict(values) for index, values in optimizer["state"].items()
        }  # a copy: gathering replaces tensors
    for tensors, key in _class_tensors(state, model, optimizer):
        tensors[key] = gather_to_first(tensors[key], job.dataset.instances)
    if rank():
        return
    save_checkpoint(
        path,
        Checkpoint(
            stage=job.number,
            config=job.config,
            vocabulary=job.words.vocabulary,
            word_dim=job.words.word_dim,
            word_vectors=job.words.source,
            instances=job.dataset.instances,
            dataset=job.dataset.name,
            dataset_fingerprint=job.dataset.training_fingerprint,
            parent=job.parent,
            prepared_vocabulary=job.dataset.vocabulary.fingerprint,
            step=state.step,
            steps_per_epoch=training_set.steps_per_epoch,
            epochs=state.epochs,
            usable_photos=training_set.usable_fingerprint,
            best=state.best,
            unlogged=unlogged,
            model=model,
            optimizer=optimizer,
            scaler=state.updater.state() if resumable else {},
        ),
    )


def resume(job: StageJob, state: TrainingState, files: StageFiles) -> Checkpoint:
    """Load last.pt into `state`, on every process; returns the checkpoint.

    Raises:
        CheckpointError: it cannot be read, or was begun with other settings, data or models.
    """
    last, remedy = files.last, f"dpce train-stage{job.number} --fresh"
    try:
        checkpoint = load_checkpoint(last, remedy=remedy)
    except CheckpointError as error:
        if kept := [path for path in files.epochs() if not path.samefile(last)]:
            raise CheckpointError(f"{error}, or copy {kept[-1]} over it to go back to that epoch") from error
        raise
    check_belongs(checkpoint, job.dataset, last)
    changed = differences(checkpoint.config, job.config)
    free = tuple(f"stage{job.number}.{name}: " for name in _MAY_CHANGE)
    for line in changed:
        if line.startswith(free):
            job.reporter.note(f"from here on {line}")
    changed = [line for line in changed if not line.startswith(free)]
    if job.number == 1:
        changed = [line for line in changed if not line.startswith("stage2.")]
    if (checkpoint.vocabulary, checkpoint.word_vectors) != (job.words.vocabulary, job.words.source):
        changed.append(f"word vectors: {checkpoint.word_vectors} -> {job.words.source}")
    if checkpoint.parent != job.parent:
        changed.append("the Stage I model" if job.number == 2 else "the model of --from")
    if changed:
        raise CheckpointError(
            f"{last}: cannot be continued with other settings: {'; '.join(changed)}. "
            f"Run with the settings it began with, or begin anew with '{remedy}'"
        )
    if len(steps := set(gather_objects(checkpoint.step))) > 1:
        raise CheckpointError(
            f"{last}: the processes read different files, of steps {', '.join(map(str, sorted(steps)))}; wait until "
            "the network disk shows all of them the same file, then run again"
        )
    for tensors, key in _class_tensors(state, checkpoint.model, checkpoint.optimizer):
        tensors[key] = tensors[key][share(checkpoint.instances)]
    state.model.load_state_dict(checkpoint.model)
    try:
        load_optimizer_state(state.updater.optimizer, checkpoint.optimizer)
        state.updater.load_state(checkpoint.scaler)
    except ValueError as error:
        raise CheckpointError(f"{last}: cannot be continued ({error}); run '{remedy}'") from error
    state.step, state.best = checkpoint.step, checkpoint.best
    job.reporter.note(f"continuing {last} after step {state.step}")
    return checkpoint


def check_same_photos(checkpoint: Checkpoint, training_set: TrainingSet, job: StageJob, files: StageFiles) -> None:
    """Refuse to continue with another list of usable photos: it would change the order and the schedule.

    Raises:
        CheckpointError: a photo can be read now that could not before, or the other way round.
    """
    if checkpoint.steps_per_epoch == training_set.steps_per_epoch and (
        checkpoint.usable_photos in ("", training_set.usable_fingerprint)
    ):
        return
    raise CheckpointError(
        f"{files.last}: the run began with other training photos, {checkpoint.steps_per_epoch} steps per epoch; now "
        f"{len(training_set.usable)} training photos can be used, {training_set.steps_per_epoch} steps per epoch. Some "
        f"were repaired or lost: put them back as they were, or run 'dpce train-stage{job.number} --fresh'"
    )


def _class_tensors(
    state: TrainingState, model: dict[str, Tensor], optimizer: dict[str, Any]
) -> Iterator[tuple[dict[Any, Tensor], Any]]:
    """The tensors of the state dicts of which each process has only the rows of its classes."""
    if world_size() == 1:
        return
    learning = [parameter for group in state.updater.optimizer.param_groups for parameter in group["params"]]
    for name, parameter in state.model.shared_classifier.named_parameters():
        yield model, f"shared_classifier.{name}"
        index = next((number for number, other in enumerate(learning) if other is parameter), None)
        values = optimizer.get("state", {}).get(index, {})
        for key in [key for key, value in values.items() if isinstance(value, Tensor) and value.dim()]:
            yield values, key
