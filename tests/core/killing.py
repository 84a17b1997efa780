"""Both stages and the extraction, killed at random moments again and again, as a process of its own.

`python -m tests.core.killing FOLDER SEED KILLS` works on the equal workspaces FOLDER/whole and FOLDER/broken, and
prints as JSON how far the killed runs had come. Until they have ended, it computes nothing itself, and so has no
threads: its children, in which everything is imported already, are forked.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import matplotlib.figure  # noqa: F401 - not to be imported by every child
import torch.utils.tensorboard

from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval import extraction
from dpce_cli.core.training.journal import Journal
from dpce_cli.core.workspace.artefacts import load_best
from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import succeed
from tests.core.tiny import checkpoint, outcome, records, tiny_cnn, train

Job = Callable[[Workspace], object]


def _stage(number: int) -> Job:
    return lambda workspace: train(
        workspace, number, workspace.load_dataset().config, checkpoint_minutes=0.0005, keep=2
    )


def _extract(workspace: Workspace) -> None:
    dataset = workspace.load_dataset()
    extraction.extract_features(
        workspace, dataset, load_best(workspace, dataset, None), split="val", device=torch.device("cpu"), workers=0,
        reporter=Reporter(),
    )  # fmt: skip


def _start(job: Job, workspace: Workspace) -> int:
    child = os.fork()
    if not child:
        try:
            job(workspace)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def _ends_before(child: int, seconds: float) -> bool:
    """Whether the child ends in time; otherwise it is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            assert status == 0
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == 0


def _made_by(workspace: Workspace, name: str) -> list[Path]:
    folders = {"extraction": "features"}.get(name, name)
    return [workspace.folder / folders, *([workspace.folder / "cache"] if name == "stage1" else [])]


def _result(workspace: Workspace, name: str) -> object:
    if name == "extraction":
        return (workspace.folder / "features" / "val.h5").read_bytes()
    return outcome(workspace, int(name[-1]))


def _progress(workspace: Workspace, name: str) -> int:
    """Steps that the last checkpoint holds; for the extraction, whether it has begun."""
    if name == "extraction":
        return int((workspace.folder / "features" / "val.h5.partial").exists())
    last = workspace.stage_folder(int(name[-1])) / "last.pt"
    return checkpoint(workspace, int(name[-1]), "last").step if last.is_file() else 0


def _metrics(workspace: Workspace) -> dict[str, object]:
    """The models' metrics: from `dpce eval --json`, and for every epoch from metrics.jsonl."""
    measured = succeed("eval", "--split", "val", "--json", workspace=workspace.root).stdout
    return {"eval": json.loads(measured)} | {
        f"stage{stage}": records(workspace, stage, "validation") for stage in (1, 2)
    }


def main(folder: Path, seed: int, kills: int) -> None:
    chance, whole, broken = random.Random(seed), Workspace(folder / "whole"), Workspace(folder / "broken")
    reached: dict[str, list[int]] = {}
    jobs: dict[str, Job] = {"stage1": _stage(1), "stage2": _stage(2), "extraction": _extract}
    for name, job in jobs.items():
        start = time.monotonic()
        assert _ends_before(_start(job, whole), 300)
        duration, expected = time.monotonic() - start, _result(whole, name)
        reached[name] = []
        while len(reached[name]) < kills:
            if _ends_before(_start(job, broken), chance.uniform(0, duration)):
                assert _result(broken, name) == expected
                for made in _made_by(broken, name):
                    shutil.rmtree(made, ignore_errors=True)
            else:
                reached[name].append(_progress(broken, name))
        assert _ends_before(_start(job, broken), 300)
        assert _result(broken, name) == expected
    metrics = _metrics(whole)
    assert all(metrics.values())
    assert _metrics(broken) == metrics
    assert not list(broken.root.rglob(".*.tmp"))
    assert not list(broken.root.rglob("*.partial"))
    print(json.dumps(reached))


if __name__ == "__main__":
    with (
        tiny_cnn(),
        patch.object(Journal, "draw_curves", lambda self, path, **options: path.touch()),
        patch.multiple(extraction, _IMAGES=4, _CAPTIONS=16),
    ):
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
