"""Checkpoints: a model with all that is needed to use it, to continue its training, and to tell its data set."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpce_cli.core.config import Config
from dpce_cli.core.errors import CheckpointError, WorkspaceError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.storage.files import is_remembered, remember, replacing
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.workspace.dataset import PreparedDataset

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds."""

    stage: int
    """1 or 2."""
    config: Config
    vocabulary: Vocabulary
    """The words of the text encoder's rows: the prepared vocabulary, or the part of it that has word vectors."""
    word_dim: int
    word_vectors: str
    """Where the word vectors came from."""
    instances: int
    dataset: str
    """Name of the data set it was trained on."""
    dataset_fingerprint: str
    """Of the photos and captions that it was trained on: `PreparedDataset.training_fingerprint`."""
    parent: str
    """Fingerprint of the model that the stage began from: Stage I's for Stage II, and that of --from for Stage I. Empty
    where there was none, and in imported models."""
    prepared_vocabulary: str
    """Fingerprint of the vocabulary that prepare-vocab made."""
    step: int
    """Finished training steps; 0 in an imported model."""
    steps_per_epoch: int
    """0 in an imported model."""
    best: dict[str, float]
    """"rsum", "epoch" of the best validation so far; empty before the first."""
    unlogged: dict[str, Tensor]
    """Sums of the losses and accuracies of the last steps, which are not in metrics.jsonl yet."""
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    """State dict of the optimizer; empty in best.pt."""
    epochs: int = -1
    """Finished epochs with their validation; -1 in files that do not tell: all that the steps fill."""
    usable_photos: str = ""
    """`TrainingSet.usable_fingerprint` of the run; empty in files that do not tell, and in imported models."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """Loss scale of a run in float16; empty otherwise and in best.pt."""
    fingerprint: str = ""
    """SHA-256 of the model's weights; set by `save_checkpoint`."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint under a temporary name, then rename it.

    Raises:
        WorkspaceError: it cannot be written; what was at `path` stays.
    """
    content = {
        **vars(checkpoint),
        "format": FORMAT,
        "config": checkpoint.config.to_dict(),
        "vocabulary": checkpoint.vocabulary.to_json(),
        "fingerprint": fingerprint(checkpoint.model),
    }
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's zip writer reports a full disk so
            raise WorkspaceError(
                f"{path}: cannot be written ({str(error).splitlines()[0]}); "
                "free space or choose another --workspace, then run again"
            ) from error


def load_checkpoint(path: Path, *, remedy: str) -> Checkpoint:
    """Read a checkpoint; tensors stay on disk until they are used.

    The first time, and whenever the file has changed, all of it is read and checked against its checksums: CRC-32 of
    each part, and SHA-256 of the weights. Then a small file beside it remembers its size and modification time.

    Args:
        remedy: the command that makes the checkpoint, for messages.

    Raises:
        CheckpointError: the file is missing, damaged, written by another version, or not a checkpoint of dpce.
    """
    try:
        path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: there is no such checkpoint; run '{remedy}' first") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it names no format")
        format_ = content.pop("format")
        if format_ == FORMAT:
            _check_names(content)
            content["config"] = Config.from_dict(content["config"], "config")
            content["vocabulary"] = Vocabulary.from_json(content["vocabulary"], "vocabulary")
            checkpoint = Checkpoint(**content)
            _check_fields(checkpoint)
            _check_weights(checkpoint)
            _check_intact(path, checkpoint)
            return checkpoint
    except Exception as error:  # torch raises many types for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason}); run '{remedy}' again") from error
    named = " ".join(str(format_).split())[:50]
    raise CheckpointError(f"{path}: has format {named}, this dpce reads {FORMAT}; run '{remedy} --fresh'")


def _check_names(content: Mapping[Any, Any]) -> None:
    """Raise `ValueError` where fields are missing or unknown."""
    known = {one.name for one in fields(Checkpoint)}
    needed = {one.name for one in fields(Checkpoint) if one.default is MISSING and one.default_factory is MISSING}
    for what, names in (("is missing", needed - content.keys()), ("is not known", content.keys() - known)):
        if names:
            raise ValueError(f"{min(map(str, names))[:50]!r} {what}")


def _check_fields(checkpoint: Checkpoint) -> None:
    """Raise `ValueError` where a field is not what it should be."""
    kinds = {"int": int, "str": str, "Config": Config, "Vocabulary": Vocabulary}
    for declared in fields(checkpoint):
        value, expected = getattr(checkpoint, declared.name), kinds.get(str(declared.type), dict)
        if not isinstance(value, expected) or isinstance(value, bool):
            raise ValueError(f"{declared.name} is {type(value).__name__}, expected {expected.__name__}")
    at_least = {"step": 0, "steps_per_epoch": 0, "epochs": -1, "instances": 1, "word_dim": 1}
    wrong = [name for name, least in at_least.items() if not least <= getattr(checkpoint, name) < 2**48]
    if checkpoint.stage not in (1, 2):
        wrong.append("stage")
    elif checkpoint.epochs > checkpoint.config.stage(checkpoint.stage).epochs:
        wrong.append("epochs")
    elif checkpoint.step > checkpoint.steps_per_epoch * checkpoint.config.stage(checkpoint.stage).epochs:
        wrong.append("step")
    if checkpoint.best and not (
        checkpoint.best.keys() == {"rsum", "epoch"} and all(map(_is_finite_number, checkpoint.best.values()))
    ):
        wrong.append("best")
    if not all(isinstance(name, str) and _is_finite_scalar(value) for name, value in checkpoint.unlogged.items()):
        wrong.append("unlogged")
    if checkpoint.optimizer and not (
        checkpoint.optimizer.keys() == {"state", "param_groups"}
        and isinstance(checkpoint.optimizer["state"], dict)
        and all(isinstance(values, dict) for values in checkpoint.optimizer["state"].values())
    ):
        wrong.append("optimizer")
    if wrong:
        raise ValueError(f"{wrong[0]} cannot be {getattr(checkpoint, wrong[0])!r}"[:200])


def _check_weights(checkpoint: Checkpoint) -> None:
    """Raise `ValueError` where the weights are not those of the configured model."""
    with torch.device("meta"):
        expected = DualEncoder(
            checkpoint.config,
            vocabulary_size=len(checkpoint.vocabulary),
            word_dim=checkpoint.word_dim,
            instances=checkpoint.instances,
        ).state_dict()
    if differing := sorted(map(str, expected.keys() ^ checkpoint.model.keys())):
        raise ValueError(f"{len(differing)} tensors are missing or foreign, the first is {differing[0]}")
    for name, empty in expected.items():
        value = checkpoint.model[name]
        if not is_like(value, empty):
            raise ValueError(f"{name} is not a tensor of {empty.dtype} {tuple(empty.shape)}")


def is_like(value: object, example: Tensor) -> bool:
    """Whether a value from a file is a plain tensor in memory of the shape and type of `example`."""
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and (value.shape, value.dtype) == (example.shape, example.dtype)
    )


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_finite_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and math.isfinite(value.item())


def _check_intact(path: Path, checkpoint: Checkpoint) -> None:
    """Raise `ValueError` where the file is not as it was written, or holds numbers that are not finite."""
    status = path.stat()
    stamp = f"{status.st_size} {status.st_mtime_ns} {checkpoint.fingerprint}"
    checked = path.with_name(f".{path.name}.checked")
    if is_remembered(checked, stamp):
        return
    with zipfile.ZipFile(path) as file:
        if (damaged := file.testzip()) is not None:
            raise ValueError(f"its part {damaged} is damaged")
    if fingerprint(checkpoint.model) != checkpoint.fingerprint:
        raise ValueError("its weights are not those that were saved")
    for name, value in checkpoint.model.items():
        if value.is_floating_point() and not bool(value.sum().isfinite()):
            raise ValueError(f"{name} holds numbers that are not finite")
    remember(checked, stamp)


def check_belongs(checkpoint: Checkpoint, dataset: PreparedDataset, path: Path) -> None:
    """Refuse a checkpoint that was trained with another vocabulary or data set than the prepared one.

    Raises:
        CheckpointError: it does not belong to `dataset`.
    """
    train = f"run 'dpce train-stage{checkpoint.stage} --fresh'"
    if checkpoint.prepared_vocabulary != dataset.vocabulary.fingerprint:
        raise CheckpointError(
            f"{path}: was trained with another vocabulary than the one of data set '{dataset.name}'; "
            f"{train}, or prepare the data set as it was"
        )
    if checkpoint.dataset_fingerprint != dataset.training_fingerprint:
        raise CheckpointError(
            f"{path}: was trained when data set '{checkpoint.dataset}' had other training photos or captions; "
            f"{train}, or prepare the data set as it was"
        )


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of a state dict's names and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
