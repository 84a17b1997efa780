"""examples/ablations.sh; its commands are run by this process, on a tiny network."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from multiprocessing.connection import Client, Listener
from pathlib import Path
from unittest.mock import patch

import pytest

from dpce_cli.core.workspace.checkpoint import Checkpoint
from tests.command_line import SCENES, dpce, read_checkpoint, succeed

ROOT = Path(__file__).resolve().parents[1]
DPCE = """
import os, sys
from multiprocessing.connection import Client

with Client(os.environ["DPCE_TEST_SOCKET"]) as connection:
    connection.send((sys.argv[1:], dict(os.environ)))
    code, stdout, stderr = connection.recv()
sys.stdout.write(stdout)
sys.stderr.write(stderr)
sys.exit(code)
"""
"""Sends its command line to this process: each command would take seconds to import torch."""


def _executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def _tell_the_end(script: subprocess.Popen[bytes], socket: str) -> None:
    script.wait()
    with Client(socket) as connection:
        connection.send(None)


def _run(command: list[str | Path], *, folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Run a script whose `dpce` is `DPCE`; returns its exit code, stdout and stderr, which go through `folder`."""
    with (
        Listener(family="AF_UNIX") as listener,
        open(folder / "stdout", "w+", encoding="utf-8") as stdout,
        open(folder / "stderr", "w+", encoding="utf-8") as stderr,
        subprocess.Popen(
            command,
            env={**os.environ, **environment, "DPCE_TEST_SOCKET": str(listener.address)},
            stdout=stdout,
            stderr=stderr,
        ) as script,
    ):
        threading.Thread(target=_tell_the_end, args=(script, str(listener.address))).start()
        while True:
            with listener.accept() as connection:
                if (received := connection.recv()) is None:
                    break
                arguments, variables = received
                with patch.dict(os.environ, variables, clear=True):
                    outcome = dpce(*arguments)
                connection.send((outcome.code, outcome.stdout, outcome.stderr))
        stdout.seek(0)
        stderr.seek(0)
        return script.returncode, stdout.read(), stderr.read()


@pytest.mark.slow
def test_every_ablation_is_trained_and_stands_beside_the_papers_figures(tmp_path: Path) -> None:
    workspace, environment = tmp_path / "work space", tmp_path / "environment"
    succeed(*SCENES, workspace=workspace)
    succeed("build-word2vec", workspace=workspace)
    _executable(environment / "bin" / "python", "")  # nothing is installed
    (tmp_path / "dpce.py").write_text(DPCE, encoding="utf-8")
    _executable(environment / "bin" / "dpce", f'exec "{sys.executable}" "{tmp_path / "dpce.py"}" "$@"')
    code, stdout, stderr = _run(
        [ROOT / "examples" / "ablations.sh", "stage2.epochs=2", "stage1.label_smoothing=0.1"],
        folder=tmp_path,
        environment={"VIRTUAL_ENV": str(environment), "DPCE_WORKSPACE": str(workspace)},
    )
    assert code == 0, stderr
    about, table = stdout.split("\n\n")
    assert "on the val photos of scenes; the paper's R@1 is of" in about
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {len(row) for row in rows} == {12}
    measured = {row[0]: row for row in rows[2:]}
    assert {name: row[10:] for name, row in measured.items()} == {
        "Stage I, ranking loss only": ["6.1", "4.9"],
        "Stage I, instance loss only": ["39.9", "28.2"],
        "Stage I, random word vectors": ["38.0", "26.6"],
        "Stage I, no position shift": ["34.1", "23.6"],
        "Stage II, instance loss only": ["50.5", "34.9"],
        "Stage II, ranking loss only": ["47.5", "29.0"],
        "Stage II, both losses": ["55.4", "39.7"],
        "one stage as long as both, both losses": ["-", "-"],
    }
    assert all(0 <= float(value) <= 100 for row in measured.values() for value in row[2:9])
    assert len({row[1] for row in measured.values()}) == 8  # each of another checkpoint
    assert (workspace / "ablations" / "table.md").read_text(encoding="utf-8") == stdout

    def best(name: str, stage: int) -> Checkpoint:
        return read_checkpoint(workspace / "ablations" / name / "scenes" / f"stage{stage}" / "best.pt")

    first = best("stage1", 1)
    for name, weights in (("both", (4, 1, 1)), ("instance", (0, 1, 1)), ("ranking", (4, 0, 0))):
        config = best(name, 2).config.stage2
        assert (config.ranking_weight, config.image_weight, config.text_weight) == weights
        assert best(name, 2).parent == first.fingerprint
    for name, epochs in (("stage1-ranking", 1), ("one-stage", 3)):
        config = best(name, 2).config.stage2
        assert (best(name, 2).parent, config.epochs, config.label_smoothing) == ("", epochs, 0.1)
        assert config.learning_rate == first.config.stage1.learning_rate
        assert config.ranking_weight == 4
    assert best("stage1-ranking", 2).config.stage2.image_weight == 0
    assert best("one-stage", 2).config.stage2.image_weight == 1
    assert best("both", 2).config.stage2.epochs == 2
    assert not best("no-shift", 1).config.model.position_shift
    assert (best("random-words", 1).word_vectors, first.word_vectors) == ("random", "word2vec trained on the captions")
