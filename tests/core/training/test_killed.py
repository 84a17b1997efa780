from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import prepare, tiny_config, tiny_images

KILLS = 4
"""Of each of two stages and the extraction."""


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False], ids=["cache", "photos"])
def test_a_run_that_is_killed_at_any_moment_continues_to_the_same_result(
    tmp_path: Path, weights: Path, frozen: bool
) -> None:
    """Weights, optimizer, records, embeddings and metrics are bit-identical, and nothing is left lying about."""
    images = tiny_images(tmp_path / "photos", train=24, val=40)
    for name in ("whole", "broken"):
        prepare(Workspace(tmp_path / name), tmp_path / "photos", images, tiny_config(weights if frozen else None))
    run = subprocess.run(
        [sys.executable, "-m", "tests.core.killing", tmp_path, str(int(frozen)), str(KILLS)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    reached = json.loads(run.stdout)
    assert {name: len(steps) for name, steps in reached.items()} == dict.fromkeys(reached, KILLS)
    assert any(reached["stage1"] + reached["stage2"])
