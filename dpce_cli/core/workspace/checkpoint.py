"""Checkpoints: a model with everything needed to use it, to continue it, and to tell what it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpce_cli.core.config import Config
from dpce_cli.core.errors import CheckpointError, WorkspaceError
from dpce_cli.core.storage.files import replacing
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.workspace.workspace import PreparedDataset

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
    """Fingerprint of the Stage I checkpoint that Stage II began from; empty in Stage I and where both were imported."""
    prepared_vocabulary: str
    """Fingerprint of the vocabulary that prepare-vocab made."""
    step: int
    """Finished training steps; 0 in an imported model."""
    steps_per_epoch: int
    """0 in an imported model."""
    best: dict[str, float]
    """"rsum", "epoch" of the best validation so far; empty before the first."""
    unlogged: dict[str, Tensor]
    """Sums of the losses and accuracies of the last steps, which metrics.jsonl has no record of yet."""
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    """State dict of the optimizer; empty in best.pt."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """Loss scale of a run in float16; empty otherwise and in best.pt."""
    fingerprint: str = ""
    """SHA-256 of the model's weights; set by `save_checkpoint`."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

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

    Args:
        remedy: the command that makes it.

    Raises:
        CheckpointError: the file is missing, damaged, or written by another version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; run '{remedy}' first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        format_ = content.pop("format")
        if format_ == FORMAT:
            content["config"] = Config.from_dict(content["config"], str(path))
            content["vocabulary"] = Vocabulary.from_json(content["vocabulary"], str(path))
            return Checkpoint(**content)
    except Exception as error:  # torch raises many types for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason}); run '{remedy}' again") from error
    raise CheckpointError(f"{path}: has format {format_}, this dpce reads {FORMAT}; run '{remedy}' again")


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
