"""What both stages do around their losses: updates, logs, validation, checkpoints, resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dpce_cli.core.config import Config
from dpce_cli.core.errors import DataError, TrainingError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.models.text_encoder import TextEncoder
from dpce_cli.core.processes.collectives import (
    any_process,
    decided_by_first,
    gather_objects,
    gather_rows,
    in_parallel,
    lengths,
    rank,
    share,
    world_size,
)
from dpce_cli.core.processes.environment import launcher_is_gone
from dpce_cli.core.processes.interruption import Interrupted, StopRequest
from dpce_cli.core.processes.sync_batch_norm import synchronise_batch_norms
from dpce_cli.core.progress import Reporter, duration
from dpce_cli.core.retrieval.metrics import RetrievalMetrics
from dpce_cli.core.seeding import derived_seed
from dpce_cli.core.training.batches import Batch, TrainingSet
from dpce_cli.core.training.health import SMALLEST_SCALE, StuckRanking, diverged
from dpce_cli.core.training.journal import Journal
from dpce_cli.core.training.meter import Meter
from dpce_cli.core.training.optimisation import backbone_is_frozen, build_optimizer, learning_rate, parameter_groups
from dpce_cli.core.training.options import RunOptions, StageResult, WordTable, check_shares
from dpce_cli.core.training.precision import accelerate
from dpce_cli.core.training.report import log_fields, optimisation_lines, validation_line, validation_record
from dpce_cli.core.training.stage_files import StageFiles
from dpce_cli.core.training.state import check_steps, resume, save_state
from dpce_cli.core.training.updates import Updater, all_finite
from dpce_cli.core.training.validation import ValidationSet
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace

_LOG_EVERY = 25


class StageRun:
    """One stage in progress; the stages' loops call its methods in the order they stand here.

    Args:
        model: with the weights that the stage begins from, of the shared classifier this process's share; replaced by
            those of last.pt where a run continues.
        stage: 1 or 2.
        parent: fingerprint of the checkpoint that Stage II begins from.
    """

    def __init__(
        self,
        workspace: Workspace,
        dataset: PreparedDataset,
        config: Config,
        model: DualEncoder,
        *,
        stage: int,
        words: WordTable,
        parent: str = "",
        options: RunOptions,
        reporter: Reporter,
    ) -> None:
        self.dataset, self.config, self.words, self.number, self.parent = dataset, config, words, stage, parent
        self.stage = config.stage(stage)
        self.options, self.reporter = options, reporter
        check_shares(config, stage, world_size())
        self.model = model.to(options.device)
        accelerate(model, options.device, options.precision, compiled=options.compiled)
        self.groups = parameter_groups(model, self.stage.multipliers)
        self.frozen_backbone = backbone_is_frozen(self.groups)
        self.optimizer = build_optimizer(self.groups, self.stage)
        classifier = model.shared_classifier
        classifier.attach_to(self.optimizer)
        self.updater = Updater(
            self.optimizer, clip_norm=self.stage.clip_norm, precision=options.precision, device=options.device,
            shared_out=list(classifier.parameters()),
        )  # fmt: skip
        ranked = stage == 2 and config.stage2.ranking_weight and config.stage2.margin
        self._stuck = StuckRanking(config.stage2.margin) if ranked else None
        self.folder = workspace.stage_folder(stage)
        self.files = StageFiles(self.folder)
        decided_by_first(self.files.claim)
        self.step, self.part, self.best, unlogged = 0, 0, dict[str, float](), dict[str, Tensor]()
        self._stop = StopRequest()
        checkpoint = None
        if decided_by_first(self.files.last.is_file) and not options.fresh:
            checkpoint = resume(self)
            unlogged = checkpoint.unlogged
        cache = workspace if self.frozen_backbone and options.feature_cache else None
        self.training_set = TrainingSet(
            dataset, config, words.vocabulary, model.image_encoder, stage=stage, cache=cache,
            workers=options.workers, reporter=reporter,
        )  # fmt: skip
        self.validation_set = ValidationSet(
            dataset, config, words.vocabulary, model.image_encoder, cache=cache,
            workers=options.workers, reporter=reporter,
        )  # fmt: skip
        self.steps_per_epoch = self.training_set.steps_per_epoch
        if checkpoint:
            check_steps(checkpoint, self)
        self.meter = Meter(self.step % self.steps_per_epoch % _LOG_EVERY, unlogged)
        if not self.step and (old := self.files.existing()) and not rank():
            reporter.note(f"beginning anew; this replaces {', '.join(path.name for path in old)} in {self.folder}")
            self.files.remove()
        self._saved = time.monotonic()
        self.journal = None if rank() else Journal(self.folder, step=self.step)
        synchronise_batch_norms(model, options.device)
        self._image_encoder = in_parallel(model.image_encoder, options.device)
        self._text_encoder = in_parallel(model.text_encoder, options.device)
        self._describe()

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from 0; Ctrl-C is heeded at the next step's end while they run."""
        first = self.step // self.steps_per_epoch
        if first >= self.stage.epochs:
            self.reporter.note(f"stage {self.number} is finished; begin anew with --fresh")
        with self._stop.listening():
            yield from range(first, self.stage.epochs)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches that are left of `epoch`; the model is in training mode, frozen parts are not."""
        self.model.train()
        if self.frozen_backbone:
            self.model.image_encoder.backbone.eval()
        done = self.step - epoch * self.steps_per_epoch
        label = f"stage {self.number} epoch {epoch + 1}/{self.stage.epochs}"
        self.meter.restart_clock()
        with self.reporter.track(label, self.steps_per_epoch, done - self.meter.steps) as self._advance:
            for batch in self.meter.waiting(self.training_set.batches(epoch, done)):
                if len(batch.rows) < 2 or not all(batch.counts):
                    raise DataError(
                        f"{self.dataset.root}: too few photos of step {self.step} can be read; put them there and run "
                        "again"
                    )
                self._batch = batch
                yield batch

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """The parts of a batch that pass the networks one after another, on the device; by default the whole batch."""
        for number, part in enumerate(batch.parts(self.stage.accumulation_steps)):
            self.part = number
            self._seed(rank())
            yield part.to(self.options.device)

    def _seed(self, process: int) -> None:
        """Have what torch's own generators draw next, dropout foremost, depend on step, part and process alone."""
        further = [f"part {self.part}"] * bool(self.part) + [f"process {process}"] * bool(process)
        torch.manual_seed(derived_seed(self.config.seed, self.number, "step", self.step, *further))

    def encode_images(self, batch: Batch) -> Tensor:
        """f_img of the photos of all processes, in the order of `batch.instance_ids`, each computed by its own."""
        return gather_rows(self._image_encoder(batch.images), batch.counts)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """f_txt of captions that all processes know."""
        text = self._encode_text(self._text_encoder, token_ids)
        if world_size() > 1:
            self._seed(0)  # what follows sees the whole batch, and is the same on every process
        return text

    def encode_pool(self, token_ids: Tensor) -> Tensor:
        """f_txt as in testing, and without gradients."""
        encoder = self.model.text_encoder.eval()
        with torch.no_grad():
            text = self._encode_text(encoder, token_ids)
        encoder.train()
        return text

    def _encode_text(self, encoder: TextEncoder, token_ids: Tensor) -> Tensor:
        """Each process computes its share."""
        return gather_rows(encoder(token_ids[share(len(token_ids))]), lengths(len(token_ids)))

    def backward(self, loss: Tensor, **values: Tensor) -> None:
        """Add the gradients of a part's loss to those of the parts before it.

        Args:
            loss: this part's share of the batch's loss.
            values: its shares of the losses and accuracies to log.

        Raises:
            TrainingError: the loss is not finite.
        """
        if not bool(torch.isfinite(loss)):
            parts = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in values.items())
            ids = [self.training_set.images[row].image_id for row in self._batch.rows.tolist()]
            raise self._diverged(f"the loss is {float(loss.detach())} ({parts})", ids)
        self.updater.backward(loss)
        self.meter.add({"loss": loss, **values})

    def take_step(self) -> None:
        """Update the weights by the gradients of the batch."""
        self._rate = learning_rate(self.stage, self.step, self.steps_per_epoch)
        self._norm = self.updater.step(self._rate, measure=self._is_logged(self.step + 1))
        self.step += 1
        self.meter.finish_step(len(self._batch.rows))

    def _is_logged(self, step: int) -> bool:
        return step % self.steps_per_epoch % _LOG_EVERY == 0

    def log(self) -> None:
        """Write a line of the log after every 25 steps of an epoch, and at its end.

        Raises:
            TrainingError: the gradients are not finite at any scale of float16.
        """
        if self._is_logged(self.step):
            self._write_log(self._rate, self._norm)

    def save_if_due(self) -> None:
        """Save the state when its time has come, or when the run was asked to stop; `end_epoch` saves at its end.

        Raises:
            TrainingError: the weights are not finite where they would be saved.
            Interrupted: the run was asked to stop, or the process that launched this one is gone.
        """
        minutes = self.options.checkpoint_minutes
        due, stop = any_process(bool(minutes) and time.monotonic() - self._saved >= 60 * minutes, self._must_stop())
        end_of_epoch = self.step % self.steps_per_epoch == 0
        if end_of_epoch or due or stop:
            (spoilt,) = any_process(not all_finite(self.model.state_dict().values()))
            if spoilt:
                raise self._diverged("some weights are no longer finite")
        if not end_of_epoch and (due or stop):
            self._save(self.files.last)
            if stop:
                raise self._interrupted()

    def _write_log(self, rate: float, norm: float | None) -> None:
        since = self.meter.steps
        means, speed, waited = self.meter.read()
        record = {**means, "learning_rate": rate}
        if norm is not None and math.isfinite(norm):
            record["gradient_norm"] = norm
        if self.options.precision == "fp16":
            record["loss_scale"] = self.updater.scale
            if self.updater.scale < SMALLEST_SCALE:
                raise self._diverged("the gradients are not finite in float16; --precision bf16 may help")
        if self.options.device.type == "cuda":
            record["device_memory"] = torch.cuda.max_memory_allocated(self.options.device)
        record |= {"data_wait": waited, "images_per_second": speed}
        if self.journal:
            self.journal.write("train", self.step, record)
        steps = self.steps_per_epoch * self.stage.epochs
        left = duration((steps - self.step) * self.stage.batch_size / speed)
        self._advance(since, {"step": f"{self.step}/{steps}", **log_fields(record), "eta": left})
        if self._stuck and (advice := self._stuck.advice(means["ranking_loss"], since)):
            self.reporter.warn(advice)

    def end_epoch(self, epoch: int) -> None:
        """Validate, keep the best model by validation RSUM, and save the state.

        Raises:
            Interrupted: a person asked for it, or the process that launched this one is gone.
        """
        line = ""
        if self.validation_set:
            # The first process alone: nothing of it is shared out, and none has to wait for long.
            metrics = cast(
                RetrievalMetrics, gather_objects(None if rank() else self.validation_set.evaluate(self.model))[0]
            )
            if self.journal:
                self.journal.write("validation", self.step, validation_record(metrics))
            line = validation_line(metrics)
        if not self.validation_set or metrics.rsum > self.best.get("rsum", -1.0):
            self.best = {"rsum": metrics.rsum, "epoch": epoch + 1} if self.validation_set else {}
            self._save(self.files.best)
            line += " (best so far)" if line else ""
        self._save(self.files.last)
        if self.options.keep > 1 and not rank():
            self.files.keep_last(epoch + 1, self.options.keep)
        if line:
            self.reporter.note(f"stage {self.number} epoch {epoch + 1}/{self.stage.epochs} {line}")
        (stop,) = any_process(self._must_stop())
        if stop:
            raise self._interrupted()

    def finish(self) -> StageResult:
        """Close the records and draw the curves."""
        title = f"{self.dataset.name}, stage {self.number}"
        if self.journal:
            self.journal.draw_curves(self.files.curves, steps_per_epoch=self.steps_per_epoch, title=title)
            self.journal.close()
        return StageResult(best=self.files.best, curves=self.files.curves, validation=self.best)

    def _must_stop(self) -> bool:
        return self._stop.made or launcher_is_gone()

    def _save(self, path: Path) -> None:
        save_state(self, path, to_continue=path == self.files.last)
        self._saved = time.monotonic()

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped at step {self.step}; the same command continues there")

    def _diverged(self, what: str, photos: Sequence[str] = ()) -> TrainingError:
        return diverged(self.stage, self.number, self.step, what, last=self.files.last, photos=photos)

    def _describe(self) -> None:
        stage, note = self.stage, self.reporter.note
        note(
            f"stage {self.number} on data set '{self.dataset.name}' (preset {self.config.preset}): "
            f"{self.training_set.instances} instances, {len(self.words.vocabulary)} words, "
            f"{stage.epochs} epochs of {self.steps_per_epoch} steps on {self.options.device}"
        )
        if world_size() > 1:
            parts = sorted(set(lengths(stage.batch_size)))
            note(
                f"{world_size()} processes share each batch of {stage.batch_size} photos, "
                f"{' or '.join(map(str, parts))} each, and the classes; the learning rates are those of the whole "
                "batch and are not scaled"
            )
        note(f"word vectors: {self.words.source}")
        for line in optimisation_lines(stage, self.groups):
            note(line)
