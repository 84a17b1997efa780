"""What a run saves, and how it goes on from there, with any number of processes.

A checkpoint has the weights, the optimizer's state, float16's loss scale, the finished steps and the configuration.
Nothing else is needed: learning rates, the order of photos, crops, captions and dropout follow from seed and step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dpce_cli.core.config import differences
from dpce_cli.core.errors import CheckpointError
from dpce_cli.core.processes.collectives import gather_to_first, rank, share, world_size
from dpce_cli.core.workspace.checkpoint import Checkpoint, check_belongs, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from dpce_cli.core.training.run import StageRun


_MAY_CHANGE = ("learning_rate", "clip_norm")
"""Settings of a stage that a run may continue with changed: a lower rate saves a run that diverged."""


def save_state(run: StageRun, path: Path, *, to_continue: bool) -> None:
    """Let the first process write the whole model, and what training it further takes.

    Raises:
        WorkspaceError: it cannot be written; what was at `path` stays.
    """
    model, optimizer = run.model.state_dict(), run.optimizer.state_dict() if to_continue else {}
    if optimizer:
        optimizer["state"] = {index: dict(state) for index, state in optimizer["state"].items()}  # not the live one
    for state, key in _shares(run, model, optimizer):
        state[key] = gather_to_first(state[key], run.training_set.instances)
    if rank():
        return
    save_checkpoint(
        path,
        Checkpoint(
            stage=run.number,
            config=run.config,
            vocabulary=run.words.vocabulary,
            word_dim=run.words.word_dim,
            word_vectors=run.words.source,
            instances=run.training_set.instances,
            dataset=run.dataset.name,
            dataset_fingerprint=run.dataset.training_fingerprint,
            parent=run.parent,
            prepared_vocabulary=run.dataset.vocabulary.fingerprint,
            step=run.step,
            steps_per_epoch=run.steps_per_epoch,
            best=run.best,
            unlogged=run.meter.sums,
            model=model,
            optimizer=optimizer,
            scaler=run.updater.state() if to_continue else {},
        ),
    )


def resume(run: StageRun) -> Checkpoint:
    """Take over what last.pt holds, and return it.

    Raises:
        CheckpointError: it cannot be read, or was begun with other settings, data or models.
    """
    last, remedy = run.files.last, f"dpce train-stage{run.number} --fresh"
    try:
        checkpoint = load_checkpoint(last, remedy=remedy)
    except CheckpointError as error:
        if kept := [path for path in run.files.epochs() if not path.samefile(last)]:
            raise CheckpointError(f"{error}, or copy {kept[-1]} over it to go back to that epoch") from error
        raise
    check_belongs(checkpoint, run.dataset, last)
    changed = differences(checkpoint.config, run.config)
    free = tuple(f"stage{run.number}.{name}: " for name in _MAY_CHANGE)
    for line in changed:
        if line.startswith(free):
            run.reporter.note(f"from here on {line}")
    changed = [line for line in changed if not line.startswith(free)]
    if run.number == 1:
        changed = [line for line in changed if not line.startswith("stage2.")]
    if (checkpoint.vocabulary, checkpoint.word_vectors) != (run.words.vocabulary, run.words.source):
        changed.append(f"word vectors: {checkpoint.word_vectors} -> {run.words.source}")
    if checkpoint.parent != run.parent:
        changed.append("the Stage I model")
    if changed:
        raise CheckpointError(
            f"{last}: cannot be continued with other settings: {'; '.join(changed)}. "
            f"Run with the settings it began with, or begin anew with '{remedy}'"
        )
    for state, key in _shares(run, checkpoint.model, checkpoint.optimizer):
        state[key] = state[key][share(checkpoint.instances)]
    run.model.load_state_dict(checkpoint.model)
    run.optimizer.load_state_dict(checkpoint.optimizer)
    run.updater.load_state(checkpoint.scaler)
    run.step, run.best = checkpoint.step, checkpoint.best
    run.reporter.note(f"continuing {last} after step {run.step}")
    return checkpoint


def check_steps(checkpoint: Checkpoint, run: StageRun) -> None:
    """Refuse to go on where an epoch has another number of steps than before: order and schedule would be others.

    Raises:
        CheckpointError: it has.
    """
    if checkpoint.steps_per_epoch != run.steps_per_epoch:
        raise CheckpointError(
            f"{run.files.last}: was begun with {checkpoint.steps_per_epoch} steps per epoch, and now there are "
            f"{run.steps_per_epoch}, because {len(run.training_set.usable)} training photos can be used: some were "
            "repaired or lost. Put the photos back as they were, or begin anew with "
            f"'dpce train-stage{run.number} --fresh'"
        )


def _shares(
    run: StageRun, model: dict[str, Tensor], optimizer: dict[str, Any]
) -> Iterator[tuple[dict[Any, Tensor], Any]]:
    """Where in state dicts the tensors are of which each process holds its classes' part."""
    if world_size() == 1:
        return
    learning = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    for name, parameter in run.model.shared_classifier.named_parameters():
        yield model, f"shared_classifier.{name}"
        index = next((place for place, other in enumerate(learning) if other is parameter), None)
        state = optimizer.get("state", {}).get(index, {})
        for key in [key for key, value in state.items() if isinstance(value, Tensor) and value.dim()]:
            yield state, key
