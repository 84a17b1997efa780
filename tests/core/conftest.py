from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dpce_cli.core.config import Config
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import TinyCNN, copy, prepare, save_weights, tiny_cnn, tiny_config, tiny_images, train


@dataclass(frozen=True)
class Trained:
    """A prepared data set with a finished Stage I; copied, never written to."""

    workspace: Workspace
    config: Config


@pytest.fixture(name="tiny_cnn")
def tiny_cnn_fixture() -> Iterator[None]:
    with tiny_cnn():
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    tiny_images(root)
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a `TinyCNN`."""
    torch.manual_seed(0)
    return save_weights(tmp_path_factory.mktemp("weights") / "tiny.pt", TinyCNN())


@pytest.fixture(scope="session")
def frozen_stage1(tmp_path_factory: pytest.TempPathFactory, photos: Path, weights: Path) -> Trained:
    """Trained on cached features of a frozen CNN."""
    return _trained(tmp_path_factory.mktemp("frozen"), photos, tiny_config(weights))


@pytest.fixture(scope="session")
def learning_stage1(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Trained:
    """Trained on photos, the CNN from scratch."""
    return _trained(tmp_path_factory.mktemp("learning"), photos, tiny_config(None))


def _trained(folder: Path, photos: Path, config: Config) -> Trained:
    workspace = Workspace(folder)
    prepare(workspace, photos, tiny_images(photos), config)
    with tiny_cnn():
        train(workspace, 1, config)
    return Trained(workspace, config)


@pytest.fixture
def workspace(tmp_path: Path, photos: Path, weights: Path, tiny_cnn: None) -> Workspace:
    """The tiny data set, prepared; nothing is trained."""
    workspace = Workspace(tmp_path / "workspace")
    prepare(workspace, photos, tiny_images(photos), tiny_config(weights))
    return workspace


@pytest.fixture
def stage1(tmp_path: Path, frozen_stage1: Trained, tiny_cnn: None) -> Trained:
    """A copy of `frozen_stage1` that may be changed."""
    return Trained(copy(frozen_stage1.workspace, tmp_path / "trained"), frozen_stage1.config)
