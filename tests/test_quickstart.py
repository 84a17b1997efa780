"""The built-in example does what the README promises: it learns, from scratch and on a CPU, to tell scenes apart."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dpce_cli.commands.prepare_vocab import prepare_vocab
from dpce_cli.core.scenes.dataset import sample_splits
from dpce_cli.core.scenes.facts import QUERY, QUERY_FACTS, facts_of, is_true

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_quickstart_finds_the_right_scenes(tmp_path: Path) -> None:
    script = (ROOT / "examples" / "quickstart.sh").read_text(encoding="utf-8")
    commands = re.findall(r"^dpce (.+)$", script, re.MULTILINE)
    assert len(commands) == 7

    def run(line: str) -> str:
        variables = {**os.environ, "DPCE_WORKSPACE": str(tmp_path), "sheet": str(tmp_path / "taxi.png")}
        shell = f'"{sys.executable}" -m dpce_cli {line}'
        return subprocess.run(
            ["bash", "-c", shell], check=True, capture_output=True, text=True, cwd=ROOT, env=variables
        ).stdout

    for line in commands:
        run(line)
    metrics = json.loads(run("eval --json"))
    # Chance is 0.005, and the README has the figures to expect; below these, something is broken.
    assert metrics["image_to_text"]["gallery"] == 1000
    assert metrics["text_to_image"]["gallery"] == 200
    assert metrics["image_to_text"]["r1"] > 0.9
    assert metrics["text_to_image"]["r1"] > 0.75

    parameters = inspect.signature(prepare_vocab).parameters
    train, held_out = parameters["train_images"].default, parameters["test_images"].default
    scenes = sample_splits(0, {"train": train, "val": held_out, "test": held_out})["test"]
    (right,) = (i for i, scene in enumerate(scenes) if is_true(QUERY_FACTS, facts_of(scene)))
    hits = json.loads(run(f'retrieve --json --top-k 20 --query "{QUERY}"'))
    assert f"test/{right:06d}" in [hit["image_id"] for hit in hits]  # the 20 best of 200
