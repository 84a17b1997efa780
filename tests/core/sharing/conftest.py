from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpce_cli.core.progress import Reporter
from dpce_cli.core.sharing.exporting import export_model
from dpce_cli.core.sharing.model_folder import CARD, CONFIG
from dpce_cli.core.workspace.checkpoint import Checkpoint
from tests.core.conftest import Trained
from tests.core.tiny import checkpoint


@pytest.fixture
def trained(learning_stage1: Trained, tiny_cnn: None) -> Checkpoint:
    return checkpoint(learning_stage1.workspace, 1, "best")


@pytest.fixture
def folder(learning_stage1: Trained, tmp_path: Path, tiny_cnn: None) -> Path:
    """An exported model that may be changed."""
    folder = tmp_path / "model"
    export_model(learning_stage1.workspace, folder, stage=1, half=False, licence="unknown", reporter=Reporter())
    return folder


@pytest.fixture
def change_config(folder: Path) -> Callable[..., None]:
    def change(**values: Any) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.fixture
def list_again(folder: Path, change_config: Callable[..., None]) -> Callable[[], None]:
    """Have config.json list the files as they are now, as who made them up would."""

    def list_files() -> None:
        files = {
            name: {
                "bytes": len(content := (folder / name).read_bytes()),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for name in os.listdir(folder)
            if name not in (CONFIG, CARD)
        }
        change_config(files=files)

    return list_files
