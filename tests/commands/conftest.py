from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command_line import SCENES, succeed


@pytest.fixture(scope="session")
def finished_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every command has run once; copied, never written to."""
    workspace = tmp_path_factory.mktemp("finished") / "workspace"
    succeed(*SCENES, workspace=workspace)
    succeed("build-word2vec", workspace=workspace)
    for command in ("train-stage1", "train-stage2", "extract-features"):
        succeed(command, "--workers", "0", workspace=workspace)
    return workspace


@pytest.fixture
def workspace(tmp_path: Path, finished_workspace: Path) -> Path:
    """A copy of `finished_workspace` that may be changed."""
    return shutil.copytree(finished_workspace, tmp_path / "workspace", ignore=shutil.ignore_patterns("photos"))


@pytest.fixture
def prepared(workspace: Path) -> Path:
    """A workspace with a data set and word vectors; nothing is trained."""
    for name in ("stage1", "stage2", "features"):
        shutil.rmtree(workspace / "scenes" / name)
    return workspace
