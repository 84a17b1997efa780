"""What a stage is run with besides its configuration, and what comes of it."""

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
    """Refuse more processes than a batch has photos to share out.

    Raises:
        ConfigError: there are more.
    """
    size = config.stage(stage).batch_size
    if size < processes:
        raise ConfigError(
            f"stage{stage}.batch_size={size} is too small for {processes} processes, of which each needs a photo; "
            "raise it with --set, or use fewer processes"
        )


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
    checkpoint_minutes: float = 10.0
    """The state is saved at the end of every epoch, and within it when this time has passed; 0: within it never."""
    keep: int = 1
    """States of the last epochs that are kept; 1: last.pt alone."""
    precision: Precision = "fp32"
    """Of the networks in training and validation; weights and losses are in fp32."""
    compiled: bool = False
    """Compile the encoders for training."""


@dataclass(frozen=True, kw_only=True)
class WordTable:
    """The words that a text encoder knows."""

    vocabulary: Vocabulary
    word_dim: int
    source: str
    """Where their vectors came from."""


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """One stage to train, and what with."""

    workspace: Workspace
    dataset: PreparedDataset
    config: Config
    number: int
    """1 or 2."""
    words: WordTable
    parent: str = ""
    """Fingerprint of the checkpoint that Stage II begins from."""
    options: RunOptions
    reporter: Reporter

    @property
    def settings(self) -> StageConfig:
        return self.config.stage(self.number)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Where a stage ended."""

    best: Path
    curves: Path
    validation: dict[str, float]
    """"rsum" and "epoch" of the best validation; empty without a validation split."""
