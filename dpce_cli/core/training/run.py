"""What both stages do around their losses: updates, logs, validation, checkpoints, resumption."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dpce_cli.core.checkpoint import Checkpoint, check_belongs, load_checkpoint, save_checkpoint
from dpce_cli.core.config import Config, StageConfig, differences
from dpce_cli.core.distributed import (
    gather_objects,
    gather_rows,
    gather_to_first,
    in_parallel,
    lengths,
    on_any,
    rank,
    share,
    synchronise_batch_norms,
    world_size,
)
from dpce_cli.core.errors import CheckpointError, ConfigError, DataError, TrainingError
from dpce_cli.core.interruption import Interrupted, StopRequest
from dpce_cli.core.metrics import RetrievalMetrics
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.models.text_encoder import TextEncoder
from dpce_cli.core.progress import Reporter, duration
from dpce_cli.core.seeding import derived_seed
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.training.batches import Batch, TrainingSet
from dpce_cli.core.training.journal import Journal
from dpce_cli.core.training.optimisation import (
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)
from dpce_cli.core.training.validation import ValidationSet
from dpce_cli.core.workspace import PreparedDataset, Workspace

_LOG_EVERY = 25


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How, not what, to compute."""

    device: torch.device
    workers: int
    """Processes that decode photos."""
    feature_cache: bool
    """Take a frozen CNN's features from the cache instead of computing them from fresh crops."""
    fresh: bool
    """Begin anew although there is something to continue."""


@dataclass(frozen=True, kw_only=True)
class WordTable:
    """The words that a text encoder knows."""

    vocabulary: Vocabulary
    word_dim: int
    source: str
    """Where their vectors came from."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Where a stage ended."""

    best: Path
    curves: Path
    validation: dict[str, float]
    """"rsum" and "epoch" of the best validation; empty without a validation split."""


class StageRun:
    """One stage in progress; the stages' loops call its methods in the order they stand here.

    Args:
        model: with the weights that the stage begins from; replaced by those of last.pt where a run continues.
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
        self.stage: StageConfig = config.stage1 if stage == 1 else config.stage2
        self.options, self.reporter = options, reporter
        if self.stage.batch_size < world_size():
            raise ConfigError(
                f"stage{stage}.batch_size={self.stage.batch_size} is too small for {world_size()} processes, of which "
                "each needs a photo; raise it with --set, or use fewer processes"
            )
        model.shared_classifier.keep_share()
        self.model = model.to(options.device)
        self.groups = parameter_groups(model, self.stage.multipliers)
        self.frozen_backbone = not any(g.multiplier for g in self.groups if g.name.startswith("backbone"))
        self.optimizer = build_optimizer(self.groups, self.stage)
        model.shared_classifier.follow(self.optimizer)
        self.folder = workspace.stage_folder(stage)
        self.last, self.best_path = self.folder / "last.pt", self.folder / "best.pt"
        self.curves = self.folder / "curves.png"
        self.step, self.best = 0, dict[str, float]()
        self._sums = defaultdict[str, Tensor](lambda: torch.zeros(()))
        self._stop = StopRequest()
        if self.last.is_file() and not options.fresh:
            self._resume()
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
        self._since = self.step % self.steps_per_epoch % _LOG_EVERY
        if not self.step and not rank():
            for old in (self.last, self.best_path, self.curves):
                old.unlink(missing_ok=True)
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
        """The batches that are left of `epoch`, on the device; the model is in training mode, frozen parts are not."""
        self.model.train()
        if self.frozen_backbone:
            self.model.image_encoder.backbone.eval()
        done = self.step - epoch * self.steps_per_epoch
        label = f"stage {self.number} epoch {epoch + 1}/{self.stage.epochs}"
        self._photos, self._clock = 0, time.perf_counter()
        with self.reporter.track(label, self.steps_per_epoch, done - self._since) as self._advance:
            for batch in self.training_set.batches(epoch, done):
                if sum(batch.counts) < 2 or not all(batch.counts):
                    raise DataError(
                        f"{self.dataset.root}: fewer than {max(2, world_size())} photos of step {self.step} can be "
                        "read; put them there and run again"
                    )
                # Whatever draws from torch's own generators below, dropout foremost, depends on step and process.
                torch.manual_seed(self._seed(*[rank()] * bool(rank())))
                self._batch_size = sum(batch.counts)
                yield batch.to(self.options.device)

    def _seed(self, *parts: int) -> int:
        return derived_seed(self.config.seed, self.number, "step", self.step, *parts)

    def encode_images(self, batch: Batch) -> Tensor:
        """f_img of the photos of all processes, in the order of `batch.instance_ids`, each computed by its own."""
        return gather_rows(self._image_encoder(batch.images), batch.counts)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """f_txt of captions that all processes know."""
        text = self._encode_text(self._text_encoder, token_ids)
        if world_size() > 1:
            torch.manual_seed(self._seed())  # what follows sees the whole batch, and is the same on every process
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

    def update(self, loss: Tensor, **values: Tensor) -> None:
        """Take an optimisation step on `loss`; `values` are losses and accuracies to log.

        Raises:
            TrainingError: the loss is not finite, or the weights are not at a point where they would be saved.
            Interrupted: a person asked for it.
        """
        if not bool(torch.isfinite(loss)):
            parts = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in values.items())
            raise self._diverged(f"the loss is {float(loss.detach())} ({parts})")
        rate = learning_rate(self.stage, self.step, self.steps_per_epoch)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self._since += 1
        self._photos += self._batch_size
        for name, value in {"loss": loss, **values}.items():
            self._sums[name] = self._sums[name].to(value.device) + value.detach()
        end_of_epoch = self.step % self.steps_per_epoch == 0
        if self._since == _LOG_EVERY or end_of_epoch:
            self._log(rate)
        stop = on_any(self._stop.made)
        if (end_of_epoch or stop) and on_any(
            not all(bool(torch.isfinite(value).all()) for value in self.model.state_dict().values())
        ):
            raise self._diverged("some weights are no longer finite")
        if stop and not end_of_epoch:
            self._save(self.last)
            raise self._interrupted()

    def _log(self, rate: float) -> None:
        means = {name: float(value) / self._since for name, value in self._sums.items()}
        speed = self._photos / (time.perf_counter() - self._clock)
        steps = self.steps_per_epoch * self.stage.epochs
        left = (steps - self.step) * self.stage.batch_size / speed
        if self.journal:
            self.journal.write("train", self.step, {**means, "learning_rate": rate, "images_per_second": speed})
        fields = {"step": f"{self.step}/{steps}"}
        fields |= {
            name.replace("_", " "): f"{100 * mean:.1f}%" if name.endswith("accuracy") else f"{mean:.3f}"
            for name, mean in means.items()
        }
        self._advance(self._since, {**fields, "lr": f"{rate:.2g}", "img/s": f"{speed:.0f}", "eta": duration(left)})
        self._sums.clear()
        self._since, self._photos, self._clock = 0, 0, time.perf_counter()

    def end_epoch(self, epoch: int) -> None:
        """Validate, keep the best model by validation RSUM, and save the state.

        Raises:
            Interrupted: a person asked for it.
        """
        line = ""
        if self.validation_set:
            # The first process alone: nothing of it is shared out, and none has to wait for long.
            metrics = cast(
                RetrievalMetrics, gather_objects(None if rank() else self.validation_set.evaluate(self.model))[0]
            )
            i2t, t2i = metrics.image_to_text, metrics.text_to_image
            if self.journal:
                self.journal.write(
                    "validation",
                    self.step,
                    {
                        "rsum": metrics.rsum,
                        **{f"i2t_{name}": getattr(i2t, name) for name in ("r1", "r5", "r10", "median_rank")},
                        **{f"t2i_{name}": getattr(t2i, name) for name in ("r1", "r5", "r10", "median_rank")},
                    },
                )
            line = (
                f"validation: R@1 {100 * i2t.r1:.1f}% image-to-text, {100 * t2i.r1:.1f}% text-to-image, "
                f"RSUM {metrics.rsum:.1f}"
            )
        if not self.validation_set or metrics.rsum > self.best.get("rsum", -1.0):
            self.best = {"rsum": metrics.rsum, "epoch": epoch + 1} if self.validation_set else {}
            self._save(self.best_path)
            line += " (best so far)" if line else ""
        self._save(self.last)
        if line:
            self.reporter.note(f"stage {self.number} epoch {epoch + 1}/{self.stage.epochs} {line}")
        if on_any(self._stop.made):
            raise self._interrupted()

    def finish(self) -> StageResult:
        """Close the records and draw the curves."""
        title = f"{self.dataset.name}, stage {self.number}"
        if self.journal:
            self.journal.draw_curves(self.curves, steps_per_epoch=self.steps_per_epoch, title=title)
            self.journal.close()
        return StageResult(best=self.best_path, curves=self.curves, validation=self.best)

    def _save(self, path: Path) -> None:
        """Let the first process write the whole state, for any number of processes to continue from."""
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict() if path == self.last else {}
        if optimizer:
            optimizer["state"] = {index: dict(state) for index, state in optimizer["state"].items()}  # not the live one
        for state, key in self._shares(model, optimizer):
            state[key] = gather_to_first(state[key], self.training_set.instances)
        if rank():
            return
        save_checkpoint(
            path,
            Checkpoint(
                stage=self.number,
                config=self.config,
                vocabulary=self.words.vocabulary,
                word_dim=self.words.word_dim,
                word_vectors=self.words.source,
                instances=self.training_set.instances,
                dataset=self.dataset.name,
                dataset_fingerprint=self.dataset.fingerprint,
                parent=self.parent,
                prepared_vocabulary=self.dataset.vocabulary.fingerprint,
                step=self.step,
                best=self.best,
                unlogged=dict(self._sums),
                model=model,
                optimizer=optimizer,
            ),
        )

    def _shares(self, model: dict[str, Tensor], optimizer: dict[str, Any]) -> Iterator[tuple[dict[Any, Tensor], Any]]:
        """Where in state dicts the tensors are of which each process holds its classes' part."""
        own = self.model.shared_classifier
        if world_size() == 1:
            return
        learning = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for name, parameter in own.named_parameters():
            yield model, f"shared_classifier.{name}"
            index = next((place for place, other in enumerate(learning) if other is parameter), None)
            state = optimizer.get("state", {}).get(index, {})
            for key in [key for key, value in state.items() if isinstance(value, Tensor) and value.dim()]:
                yield state, key

    def _resume(self) -> None:
        remedy = f"dpce train-stage{self.number} --fresh"
        checkpoint = load_checkpoint(self.last, remedy=remedy)
        check_belongs(checkpoint, self.dataset, self.last)
        changed = differences(checkpoint.config, self.config)
        if self.number == 1:
            changed = [line for line in changed if not line.startswith("stage2.")]
        if (checkpoint.vocabulary, checkpoint.word_vectors) != (self.words.vocabulary, self.words.source):
            changed.append(f"word vectors: {checkpoint.word_vectors} -> {self.words.source}")
        if checkpoint.parent != self.parent:
            changed.append("the Stage I model")
        if changed:
            raise CheckpointError(
                f"{self.last}: cannot be continued with other settings: {'; '.join(changed)}. "
                f"Run with the settings it began with, or begin anew with '{remedy}'"
            )
        for state, key in self._shares(checkpoint.model, checkpoint.optimizer):
            state[key] = state[key][share(checkpoint.instances)]
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.step, self.best = checkpoint.step, checkpoint.best
        self._sums.update(checkpoint.unlogged)
        self.reporter.note(f"continuing {self.last} after step {self.step}")

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped at step {self.step}; the same command continues there")

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"stage {self.number}, step {self.step}: {what}; the last good state is "
            f"{self.last if self.last.is_file() else 'the beginning'}. Lower the learning rate, for instance "
            f"--set stage{self.number}.learning_rate={self.stage.learning_rate / 10:g}, and begin with --fresh"
        )

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
        note(f"{stage.optimizer}, base learning rate {stage.learning_rate:g}, {stage.schedule} schedule; per group:")
        for group in self.groups:
            rate = f"{stage.learning_rate * group.multiplier:.3g}" if group.multiplier else "frozen"
            note(f"  {group.name:<16} {group.size:>12,} parameters   lr {rate}")
