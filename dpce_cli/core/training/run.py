"""A running stage: the methods that the loops of stage1.py and stage2.py call around their losses."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dpce_cli.core.errors import DataError
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.models.text_encoder import TextEncoder
from dpce_cli.core.processes.collectives import (
    any_process,
    gather_objects,
    gather_rows,
    lengths,
    rank,
    share,
    wait_for_all,
    world_size,
)
from dpce_cli.core.processes.environment import launcher_is_gone
from dpce_cli.core.processes.interruption import Interrupted, StopRequest
from dpce_cli.core.progress import Advance, duration
from dpce_cli.core.seeding import derived_seed
from dpce_cli.core.training.batches import Batch, TrainingSet
from dpce_cli.core.training.health import SMALLEST_SCALE, StuckRanking, diverged
from dpce_cli.core.training.journal import Journal
from dpce_cli.core.training.meter import Meter
from dpce_cli.core.training.optimisation import learning_rate
from dpce_cli.core.training.options import StageJob, StageResult
from dpce_cli.core.training.report import log_fields, validation_line, validation_record
from dpce_cli.core.training.stage_files import StageFiles
from dpce_cli.core.training.state import TrainingState, save_state
from dpce_cli.core.training.updates import all_finite
from dpce_cli.core.training.validation import ValidationSet

_LOG_EVERY = 25


def steps_since_log(step: int, steps_per_epoch: int) -> int:
    """Number of steps since the last line of the log; see `StageRun.log`."""
    return step % steps_per_epoch % _LOG_EVERY


@dataclass(frozen=True)
class _PartLoss:
    """The loss of a part, to check when the device has computed it."""

    step: int
    rows: Tensor
    loss: Tensor
    values: Mapping[str, Tensor]


@dataclass(kw_only=True, eq=False)
class StageRun:
    """A running stage, made by `open_run`; the loops call its methods in the order in which they stand here."""

    job: StageJob
    state: TrainingState
    training_set: TrainingSet
    validation_set: ValidationSet
    files: StageFiles
    journal: Journal | None
    """Only process 0 has one."""
    meter: Meter
    image_encoder: ImageEncoder
    """The model's, with its gradients averaged over the processes."""
    text_encoder: TextEncoder
    """The model's, with its gradients averaged over the processes."""
    stuck: StuckRanking | None
    stop: StopRequest = field(default_factory=StopRequest)
    saved: float = field(default_factory=time.monotonic)
    """Time of the last checkpoint."""
    norm: float | None = None
    """Norm of the gradients of the last step; None if the log does not need it."""
    unchecked: _PartLoss | None = None
    """The last part's loss; whether it is finite is not known yet."""
    advance: Advance = field(init=False)
    """Reports the progress of the epoch; set by `batches`."""

    @property
    def steps_per_epoch(self) -> int:
        return self.training_set.steps_per_epoch

    def epochs(self) -> Iterator[int]:
        """The numbers of the remaining epochs, from 0. A stop signal ends the run after the next step."""
        if self.state.epochs >= self.job.settings.epochs:
            self.job.reporter.note(f"stage {self.job.number} is finished; begin anew with --fresh")
        with self.stop.listening():
            yield from range(self.state.epochs, self.job.settings.epochs)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The remaining batches of `epoch`; the model is in training mode, a frozen CNN in eval mode.

        Raises:
            DataError: fewer than 2 photos of a batch can be read, or none of a process's photos.
        """
        self.state.model.train()
        done = self.state.step - epoch * self.steps_per_epoch
        label = f"stage {self.job.number} epoch {epoch + 1}/{self.job.settings.epochs}"
        self.meter.restart_clock()
        with self.job.reporter.track(label, self.steps_per_epoch, done - self.meter.steps) as self.advance:
            for batch in self.meter.waiting(self.training_set.batches(epoch, done)):
                if len(batch.rows) < 2 or not all(batch.counts):
                    raise DataError(
                        f"{self.job.dataset.root}: too few photos of step {self.state.step} can be read; put them "
                        "there and run again"
                    )
                yield batch

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """The parts of the batch, on the device; the networks process one part after another."""
        for part in batch.parts(self.job.settings.accumulation_steps):
            self._seed(part, rank())
            yield part.to(self.job.options.device)

    def _seed(self, part: Batch, process: int) -> None:
        """Seed PyTorch's random numbers, for example for dropout, from step, part and process."""
        further = [f"part {part.part}"] * bool(part.part) + [f"process {process}"] * bool(process)
        torch.manual_seed(derived_seed(self.job.config.seed, self.job.number, "step", self.state.step, *further))

    def encode_images(self, part: Batch) -> Tensor:
        """f_img `(images, dim)` of all photos of the part; each process computes its own photos."""
        return gather_rows(self.image_encoder(part.images), part.counts)

    def encode_text(self, part: Batch) -> Tensor:
        """f_txt `(texts + swaps, dim)` of all captions of the part and of those with a swapped detail.

        Each process computes its share.
        """
        text = self._encode_share(self.text_encoder, torch.cat([part.token_ids, part.swapped_token_ids]))
        if world_size() > 1:
            self._seed(part, 0)  # from here on, all processes compute the same on the whole batch
        return text

    def encode_pool(self, token_ids: Tensor) -> Tensor:
        """f_txt `(captions, dim)` in eval mode and without gradients."""
        encoder = self.state.model.text_encoder.eval()
        with torch.no_grad():
            text = self._encode_share(encoder, token_ids)
        encoder.train()
        return text

    def _encode_share(self, encoder: TextEncoder, token_ids: Tensor) -> Tensor:
        return gather_rows(encoder(token_ids[share(len(token_ids))]), lengths(len(token_ids)))

    def backward(self, loss: Tensor, part: Batch, **values: Tensor) -> None:
        """Compute the gradients of one part and add them to those of the other parts.

        The loss is checked with the next part or before a checkpoint, so that the GPU does not wait for the check.

        Args:
            loss: the part's share of the loss of the step.
            values: the part's shares of the losses and accuracies for the log.

        Raises:
            TrainingError: the loss of the part before is not finite.
        """
        self._check_loss()
        detached = {name: value.detach() for name, value in values.items()}
        self.unchecked = _PartLoss(self.state.step, part.rows, loss.detach(), detached)
        self.state.updater.backward(loss)
        self.meter.add({"loss": loss, **values}, photos=len(part.rows))

    def _check_loss(self) -> None:
        part, self.unchecked = self.unchecked, None
        if part and not bool(torch.isfinite(part.loss)):
            terms = ", ".join(f"{name} {float(value):.4g}" for name, value in part.values.items())
            raise diverged(
                self.job.settings, self.job.number, part.step, f"the loss is {float(part.loss)} ({terms})",
                last=self.files.last, photos=[self.training_set.images[row].image_id for row in part.rows.tolist()],
            )  # fmt: skip

    def step(self) -> None:
        """Update the weights with the gradients of all parts."""
        rate = self._learning_rate(self.state.step)
        self.state.step += 1
        self.meter.steps += 1
        self.norm = self.state.updater.step(rate, measure=self._is_logged)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self.job.settings, step, self.steps_per_epoch)

    @property
    def _epoch_ends(self) -> bool:
        return self.state.step % self.steps_per_epoch == 0

    @property
    def _is_logged(self) -> bool:
        return steps_since_log(self.state.step, self.steps_per_epoch) == 0

    def log(self) -> None:
        """Write a line to the log, after every 25 steps of an epoch and at its end.

        Raises:
            TrainingError: a loss is not finite, or the gradients are not at any loss scale of float16.
            WorkspaceError: metrics.jsonl cannot be written.
        """
        if not self._is_logged:
            return
        self._check_loss()
        since = self.meter.steps
        means, speed, waited = self.meter.read()
        record = {**means, "learning_rate": self._learning_rate(self.state.step - 1)}
        if self.norm is not None and math.isfinite(self.norm):
            record["gradient_norm"] = self.norm
        if self.job.options.precision == "fp16":
            record["loss_scale"] = scale = self.state.updater.scale
            if scale < SMALLEST_SCALE:
                raise diverged(
                    self.job.settings, self.job.number, self.state.step,
                    "the gradients are not finite in float16; --precision bf16 may help", last=self.files.last,
                )  # fmt: skip
        if self.job.options.device.type == "cuda":
            record["device_memory"] = torch.cuda.max_memory_allocated(self.job.options.device)
        record |= {"data_wait": waited, "images_per_second": speed}
        if self.journal:
            self.journal.write("train", self.state.step, record)
        steps = self.steps_per_epoch * self.job.settings.epochs
        left = duration((steps - self.state.step) * self.job.settings.batch_size / speed)
        self.advance(since, {"step": f"{self.state.step}/{steps}", **log_fields(record), "eta": left})
        if self.stuck and (advice := self.stuck.advice(means["ranking_loss"], since)):
            self.job.reporter.warn(advice)

    def save_if_due(self) -> None:
        """Write last.pt at the end of an epoch, after `checkpoint_minutes`, and when the run is asked to stop.

        At the end of an epoch this comes before the validation, so that a failed validation does not lose the epoch.

        Raises:
            TrainingError: a loss or some weights are not finite.
            Interrupted: the user asked for it, or the launcher of this process has ended.
        """
        minutes = self.job.options.checkpoint_minutes
        late = bool(minutes) and time.monotonic() - self.saved >= 60 * minutes
        late, stop = any_process(late, self._must_stop())
        if not (self._epoch_ends or late or stop):
            return
        self._check_loss()
        (spoilt,) = any_process(not all_finite(self.state.model.state_dict().values()))
        if spoilt:
            raise diverged(
                self.job.settings, self.job.number, self.state.step, "some weights are no longer finite",
                last=self.files.last,
            )  # fmt: skip
        self._save(self.files.last)
        if stop:
            raise self._interrupted()

    def evaluate(self) -> None:
        """Validate, and write best.pt if the RSUM is the highest so far or there is no validation split."""
        epoch, reporter = self.state.epochs + 1, self.job.reporter
        if not self.validation_set:
            self._save(self.files.best)
            return
        # Only process 0 validates; the others wait.
        (metrics, *_) = gather_objects(None if rank() else self.validation_set.evaluate(self.state.model))
        assert metrics is not None
        if self.journal:
            self.journal.write("validation", self.state.step, validation_record(metrics))
        line = validation_line(metrics)
        if metrics.rsum > self.state.best.get("rsum", -1.0):
            self.state.best = {"rsum": metrics.rsum, "epoch": epoch}
            self._save(self.files.best)
            line += " (best so far)"
        reporter.note(f"stage {self.job.number} epoch {epoch}/{self.job.settings.epochs} {line}")

    def finish_epoch(self) -> None:
        """Write last.pt with the result of the validation, and keep the checkpoints of the last epochs.

        Raises:
            Interrupted: the user asked for it, or the launcher of this process has ended.
        """
        self.state.epochs += 1
        self._save(self.files.last)
        if self.job.options.keep > 1 and not rank():
            self.files.keep_last(self.state.epochs, self.job.options.keep)
        (stop,) = any_process(self._must_stop())
        if stop:
            raise self._interrupted()

    def finish(self) -> StageResult:
        """Draw the curves."""
        if self.journal:
            self.journal.draw_curves(
                self.files.curves,
                steps_per_epoch=self.steps_per_epoch,
                title=f"{self.job.dataset.name}, stage {self.job.number}",
            )
        return StageResult(best=self.files.best, curves=self.files.curves, validation=self.state.best)

    def _must_stop(self) -> bool:
        return self.stop.made or launcher_is_gone()

    def _interrupted(self) -> Interrupted:
        wait_for_all()  # a launcher stops all processes soon after the first one ends
        return Interrupted(f"stopped at step {self.state.step}; the same command continues there")

    def _save(self, path: Path) -> None:
        save_state(
            path, self.job, self.state, self.training_set, unlogged=self.meter.sums,
            resumable=path == self.files.last,
        )  # fmt: skip
        self.saved = time.monotonic()
