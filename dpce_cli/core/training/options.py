"""Options, inputs and results of a stage, besides its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dpce_cli.core.config import Config, StageConfig
from dpce_cli.core.errors import ConfigError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.training.precision import Precision
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace


def check_shares(config: Config, stage: int, processes: int) -> None:
    """Refuse more processes than photos per batch.

    Raises:
        ConfigError: there are more.
    """
    size = config.stage(stage).batch_size
    if size < processes:
        raise ConfigError(
            f"stage{stage}.batch_size={size} is too small for {processes} processes: each needs a photo; "
            "raise it with --set, or use fewer processes"
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that do not change what a run computes, or only slightly."""

    device: torch.device
    workers: int
    """Processes that decode photos."""
    feature_cache: bool
    """Use the cached features of a frozen CNN; otherwise, compute them from new random crops."""
    fresh: bool
    """Begin anew, even if there is a checkpoint."""
    checkpoint_minutes: float = 10.0
    """Time between checkpoints within an epoch; 0: only at its end."""
    keep: int = 1
    """Number of last epochs whose checkpoints are kept; 1: only last.pt."""
    precision: Precision = "fp32"
    """Precision of the networks; weights and losses are in fp32."""
    compiled: bool = False
    """Compile the encoders for training."""


@dataclass(frozen=True, kw_only=True)
class WordTable:
    """The words of a text encoder."""

    vocabulary: Vocabulary
    word_dim: int
    source: str
    """Where their vectors came from."""


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """A stage to train, with its inputs."""

    workspace: Workspace
    dataset: PreparedDataset
    config: Config
    number: int
    """1 or 2."""
    words: WordTable
    parent: str = ""
    """Fingerprint of the model that the stage begins from: Stage I's for Stage II; of --from for Stage I, or empty."""
    options: RunOptions
    reporter: Reporter

    @property
    def settings(self) -> StageConfig:
        return self.config.stage(self.number)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The result of a stage."""

    best: Path
    curves: Path
    validation: dict[str, float]
    """"rsum" and "epoch" of the best validation; empty without a validation split."""
