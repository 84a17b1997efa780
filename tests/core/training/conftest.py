from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpce_cli.core.config import Config
from dpce_cli.core.training.journal import Journal
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.tiny import copy


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than such training."""
    monkeypatch.setattr(Journal, "draw_curves", lambda self, path, **options: path.touch())


@pytest.fixture(params=["cache", "maps", "photos"])
def start(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    frozen_stage1: Trained,
    learning_stage1: Trained,
    tiny_cnn: None,
) -> Callable[[], tuple[Workspace, Config]]:
    """Makes equal workspaces with a finished Stage I, whose CNN is frozen and cached, or learns in part or wholly."""
    trained = learning_stage1 if request.param == "photos" else frozen_stage1
    config = trained.config
    if request.param == "maps":
        learning = [f"{stage}.multipliers.backbone=1" for stage in ("stage1", "stage2")]
        config = config.with_settings(["image.frozen_until=bn1", *learning])
    if request.param == "cache":
        config = config.with_settings(["stage2.negatives=hardest_in_pool", "stage2.captions_per_image=1"])
    count = iter(range(9))
    return lambda: (copy(trained.workspace, tmp_path / f"copy{next(count)}"), config)
