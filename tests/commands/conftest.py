from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

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
    return shutil.copytree(finished_workspace, tmp_path / "workspace", ignore=shutil.ignore_patterns("photos-*"))


@pytest.fixture
def prepared(workspace: Path) -> Path:
    """A workspace with a data set and word vectors; nothing is trained."""
    for name in ("stage1", "stage2", "features"):
        shutil.rmtree(workspace / "scenes" / name)
    return workspace


@pytest.fixture
def flickr8k_root(tmp_path: Path) -> Path:
    """Three photos laid out as Flickr8k, without a list of test photos."""
    root = tmp_path / "flickr8k"
    (root / "Flicker8k_Dataset").mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (8, 8)).save(root / "Flicker8k_Dataset" / f"{name}.jpg")
    (root / "Flickr8k.token.txt").write_text("".join(f"{name}.jpg#0\tA photo called {name} .\n" for name in "abc"))
    (root / "Flickr_8k.trainImages.txt").write_text("a.jpg\nb.jpg\n")
    (root / "Flickr_8k.devImages.txt").write_text("c.jpg\n")
    return root
