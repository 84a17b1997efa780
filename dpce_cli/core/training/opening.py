"""Prepare a run: lock the folder, load the checkpoint, the photos and the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.processes.collectives import decided_by_first, in_parallel, rank, world_size
from dpce_cli.core.processes.sync_batch_norm import synchronise_batch_norms
from dpce_cli.core.training.batches import TrainingSet
from dpce_cli.core.training.health import StuckRanking
from dpce_cli.core.training.journal import Journal
from dpce_cli.core.training.meter import Meter
from dpce_cli.core.training.optimisation import build_optimizer, cached_kind, parameter_groups
from dpce_cli.core.training.options import StageJob, check_shares
from dpce_cli.core.training.precision import TYPES, accelerate
from dpce_cli.core.training.report import opening_lines
from dpce_cli.core.training.run import StageRun, steps_since_log
from dpce_cli.core.training.stage_files import StageFiles
from dpce_cli.core.training.state import TrainingState, check_same_photos, resume
from dpce_cli.core.training.updates import Updater
from dpce_cli.core.training.validation import ValidationSet
from dpce_cli.core.workspace.feature_cache import FeatureCache


@contextmanager
def open_run(job: StageJob, model: DualEncoder) -> Iterator[StageRun]:
    """Lock the folder of the stage, load last.pt or begin anew, and read or compute cached features.

    Args:
        model: has the weights that the stage begins with, and only this process's classes of the shared classifier.
            If the run continues, the weights of last.pt replace them.

    Raises:
        CheckpointError: last.pt cannot be continued with this job.
        ConfigError: there are more processes than photos per step.
        DataError: there are too few training photos.
        WorkspaceError: another process trains this stage, or the workspace cannot be written.
    """
    check_shares(job.config, job.number, world_size())
    files = StageFiles(job.workspace.stage_folder(job.number))
    with ExitStack() as held:
        decided_by_first(lambda: held.enter_context(files.claim()))
        state = _build_state(job, model)
        checkpoint = None
        if decided_by_first(files.last.is_file) and not job.options.fresh:
            checkpoint = resume(job, state, files)
        training_set, validation_set = _load_data(job, model)
        if checkpoint:
            check_same_photos(checkpoint, training_set, job, files)
            finished = state.step // training_set.steps_per_epoch
            state.epochs = finished if checkpoint.epochs < 0 else checkpoint.epochs
        elif not rank():
            _remove_old_run(job, files)
        journal = None
        if not rank():
            validated = state.epochs * training_set.steps_per_epoch
            journal = held.enter_context(closing(Journal(files.folder, step=state.step, validated=validated)))
        synchronise_batch_norms(model, job.options.device)
        if job.options.compiled and world_size() > 1:
            job.reporter.warn(
                "--compile with several processes: each synchronised batch norm splits the compiled graph; compare the "
                "speed in the log with that of the same command without --compile"
            )
        for line in opening_lines(job, parameter_groups(model, job.settings.multipliers), training_set.steps_per_epoch):
            job.reporter.note(line)
        yield StageRun(
            job=job,
            state=state,
            training_set=training_set,
            validation_set=validation_set,
            files=files,
            journal=journal,
            meter=Meter(
                steps_since_log(state.step, training_set.steps_per_epoch), checkpoint.unlogged if checkpoint else {}
            ),
            image_encoder=in_parallel(model.image_encoder, job.options.device),
            text_encoder=in_parallel(model.text_encoder, job.options.device),
            stuck=_stuck_ranking(job),
        )


def _build_state(job: StageJob, model: DualEncoder) -> TrainingState:
    """The model on its device, with the stage's optimizer."""
    options = job.options
    model.to(options.device)
    accelerate(model, options.device, options.precision, compiled=options.compiled)
    optimizer = build_optimizer(parameter_groups(model, job.settings.multipliers), job.settings)
    model.shared_classifier.attach_to(optimizer)
    updater = Updater(
        optimizer, clip_norm=job.settings.clip_norm, precision=options.precision, device=options.device,
        shared_out=list(model.shared_classifier.parameters()),
    )  # fmt: skip
    return TrainingState(model, updater)


def _load_data(job: StageJob, model: DualEncoder) -> tuple[TrainingSet, ValidationSet]:
    """The training and validation photos, or their cached features if the CNN or its lower part is frozen."""
    kind = cached_kind(model, job.settings.multipliers)
    cache = None
    if kind and job.options.feature_cache:
        cache = FeatureCache(job.workspace, kind, TYPES[job.options.precision])
    vocabulary, workers, reporter = job.words.vocabulary, job.options.workers, job.reporter
    training_set = TrainingSet(
        job.dataset, job.config, vocabulary, model.image_encoder, stage=job.number, cache=cache,
        workers=workers, reporter=reporter,
    )  # fmt: skip
    validation_set = ValidationSet(
        job.dataset, job.config, vocabulary, model.image_encoder, cache=cache, workers=workers, reporter=reporter
    )
    return training_set, validation_set


def _remove_old_run(job: StageJob, files: StageFiles) -> None:
    if old := files.existing():
        names = ", ".join(path.name for path in old)
        job.reporter.note(f"beginning anew; this replaces {names} in {files.folder}")
        files.remove()


def _stuck_ranking(job: StageJob) -> StuckRanking | None:
    stage2 = job.config.stage2
    return StuckRanking(stage2.margin) if job.number == 2 and stage2.ranking_weight and stage2.margin else None
