"""Commands that are stopped or killed while worker processes read photos."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dpce_cli.core.processes.interruption import STOP_SIGNALS
from tests.command_line import TINY, read_checkpoint, succeed

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


def _heed_stop_signals() -> None:
    """Undo what `nohup` does, and shells for jobs in the background: signals ignored at the start stay ignored."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


class Job:
    """A command, and the processes that it starts: all have a variable `JOB` of this job's own in their environment.

    The test chooses the variable's value. Read from a process that has ended it would be empty, and every process of
    the machine would seem to belong to the job.
    """

    def __init__(self, workspace: Path, *arguments: str) -> None:
        self.name = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.command_line", *arguments, "--workspace", str(workspace), "--workers", "2"],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", JOB: self.name}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_heed_stop_signals,
        )  # fmt: skip

    def members(self) -> list[int]:
        """The living processes of the job."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._owns(path)]

    def _owns(self, process: Path) -> bool:
        try:
            return f"{JOB}={self.name}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or belongs to another user
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the job, workers first."""
        for member in reversed(self.members()):
            with suppress(ProcessLookupError):
                os.kill(member, number)


@pytest.fixture
def start(workspace: Path) -> Iterator[Callable[..., Job]]:
    """Starts a job; at the end of the test no process of it is left."""
    jobs: list[Job] = []

    def start_job(*arguments: str) -> Job:
        jobs.append(Job(workspace, *arguments))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.send(signal.SIGKILL)
        job.process.communicate()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def wait_for_line(job: Job, part: str) -> None:
    assert job.process.stderr is not None
    for line in job.process.stderr:
        if part in line:
            return
    raise AssertionError(f"ended without {part!r}")


TRAIN = ("train-stage1", "--no-word-vectors", "--epochs", "500", "--fresh")


def test_the_processes_of_a_job_are_never_those_of_another(start: Callable[..., Job]) -> None:
    job = start("--version")
    job.process.communicate()
    assert job.members() == []


@pytest.mark.parametrize("arguments", [TRAIN, (*TRAIN, "--processes", "2")])
def test_a_command_that_is_killed_leaves_no_process_and_can_be_run_again(
    start: Callable[..., Job], arguments: tuple[str, ...]
) -> None:
    job = start(*arguments)
    wait_for_line(job, "epoch 2/500 validation")
    assert len(job.members()) >= 3
    job.process.kill()
    job.process.wait()
    assert wait_until(lambda: not job.members(), 15), job.members()
    again = start(*(argument for argument in arguments if argument != "--fresh"))
    wait_for_line(again, "epoch 3/500 validation")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_of_a_job_stops_it_saved(
    workspace: Path, start: Callable[..., Job], number: signal.Signals, code: int
) -> None:
    job = start(*TRAIN)
    wait_for_line(job, "epoch 2/500 validation")
    job.send(number)
    _, stderr = job.process.communicate(timeout=60)
    step = read_checkpoint(workspace / "scenes" / "stage1" / "last.pt").step
    assert stderr.splitlines()[-1] == f"Interrupted: stopped at step {step}; the same command continues there"
    assert job.process.returncode == code
    assert step >= 8


def test_a_terminated_job_of_several_processes_stops_saved(workspace: Path, start: Callable[..., Job]) -> None:
    job = start(*TRAIN, "--processes", "2")
    wait_for_line(job, "epoch 2/500 validation")
    job.send(signal.SIGTERM)
    _, stderr = job.process.communicate(timeout=60)
    step = read_checkpoint(workspace / "scenes" / "stage1" / "last.pt").step
    assert f"Interrupted: stopped at step {step}; the same command continues there" in stderr
    assert job.process.returncode == 143
