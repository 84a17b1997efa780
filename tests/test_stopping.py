"""Commands that are stopped or killed while worker processes read photos."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from dpce_cli.core.workspace.checkpoint import load_checkpoint
from tests.command_line import TINY, succeed

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds processes as Linux lists them"),
]
LARGE = ("--set", "image.resize=160", "--set", "image.crop=160", "--set", "stage1.batch_size=64")
"""A batch is larger than a pipe's buffer: a worker blocks until its parent reads it."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopping")
    succeed("prepare-vocab", "scenes", "--train-images", "256", "--test-images", "64", *TINY, *LARGE, workspace=folder)
    return folder


JOB = "DPCE_TEST_JOB"


def start(workspace: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command; it and all processes that it starts have a variable `JOB` of their own in their environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.command_line", *arguments, "--workspace", str(workspace), "--workers", "2"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", JOB: uuid.uuid4().hex}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def variable(process: int | str) -> str:
    """The process's `JOB`; "" for a process that has none, has ended or is not ours."""
    try:
        variables = Path(f"/proc/{process}/environ").read_text().split("\0")
    except OSError:
        return ""
    return next((entry for entry in variables if entry.startswith(f"{JOB}=")), "")


def members(job: str) -> list[int]:
    """The living processes of a job."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if variable(path.name) == job]


def send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to all processes of a job, workers first."""
    for member in reversed(members(variable(process.pid))):
        os.kill(member, number)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def wait_for_line(process: subprocess.Popen[str], part: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if part in line:
            return
    raise AssertionError(f"ended without {part!r}")


TRAIN = ("train-stage1", "--no-word-vectors", "--epochs", "500", "--fresh")


@pytest.mark.parametrize("arguments", [TRAIN, (*TRAIN, "--processes", "2")])
def test_a_command_that_is_killed_leaves_no_process_and_can_be_run_again(
    workspace: Path, arguments: tuple[str, ...]
) -> None:
    process = start(workspace, *arguments)
    wait_for_line(process, "epoch 2/500 validation")
    job = variable(process.pid)
    assert len(members(job)) >= 3
    process.kill()
    process.wait()
    assert wait_until(lambda: not members(job), 15), members(job)
    process.communicate()
    again = start(workspace, *arguments[:-1] if arguments[-1] == "--fresh" else arguments)
    try:
        wait_for_line(again, "epoch 3/500 validation")
    finally:
        for member in members(variable(again.pid)):
            os.kill(member, signal.SIGKILL)
        again.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_of_a_job_stops_it_saved(workspace: Path, number: signal.Signals, code: int) -> None:
    process = start(workspace, *TRAIN)
    wait_for_line(process, "epoch 2/500 validation")
    send(process, number)
    _, stderr = process.communicate(timeout=60)
    step = load_checkpoint(workspace / "scenes" / "stage1" / "last.pt", remedy="train").step
    assert stderr.splitlines()[-1] == f"Interrupted: stopped at step {step}; the same command continues there"
    assert process.returncode == code
    assert step >= 8


def test_a_terminated_job_of_several_processes_stops_saved(workspace: Path) -> None:
    process = start(workspace, *TRAIN, "--processes", "2")
    wait_for_line(process, "epoch 2/500 validation")
    send(process, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    step = load_checkpoint(workspace / "scenes" / "stage1" / "last.pt", remedy="train").step
    assert f"Interrupted: stopped at step {step}; the same command continues there" in stderr
    assert process.returncode == 143
