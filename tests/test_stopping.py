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

import h5py
import numpy as np
import pytest
from PIL import Image

from dpce_cli.core.processes.interruption import STOP_SIGNALS
from dpce_cli.core.storage.rows import COUNTS, read_store
from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import TINY, read_checkpoint, succeed
from tests.core.tiny import TinyCNN, save_weights

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

    def start_job(*arguments: str, where: Path = workspace) -> Job:
        jobs.append(Job(where, *arguments))
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


@pytest.fixture(scope="module")
def slow_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two kinds in turn that take so long to read that a command can be killed while workers read them."""
    root = tmp_path_factory.mktemp("slow") / "photos"
    root.mkdir()
    shades = Image.linear_gradient("L").resize((3000, 3000))
    turned = shades.rotate(180)
    kinds = [Image.merge("RGB", (shades, shades, shades.rotate(90))), Image.merge("RGB", (shades, turned, turned))]
    lines = ["image,caption,split"]
    for split, count in (("train", 48), ("val", 4), ("test", 48)):
        for number in range(count):
            name = f"{split}{number:02}.png"
            if split == "train" and number < 2:
                kinds[number].save(root / name, compress_level=1)
            else:
                os.link(root / f"train0{number % 2}.png", root / name)
            lines.append(f"{name},shades of kind {number % 2},{split}")
    (root / "captions.csv").write_text("\n".join(lines))
    return root


def _finished_rows(folder: Path) -> int:
    """Rows in the partial stores of a folder."""
    finished = 0
    for path in folder.glob("*.partial"):
        with suppress(OSError), h5py.File(path, "r", locking=False) as file:
            finished += int(file[COUNTS][:].sum())
    return finished


def _assert_of_two_kinds(rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]], count: int) -> None:
    assert len(rows) == count
    for kind in (0, 1):
        np.testing.assert_allclose(rows[kind::2], np.broadcast_to(rows[kind], rows[kind::2].shape), atol=1e-3)
    assert np.abs(rows[0] - rows[1]).max() > 1e-2


def test_reading_photos_that_is_killed_leaves_no_process_and_continues(
    tmp_path: Path, slow_photos: Path, start: Callable[..., Job]
) -> None:
    prepare = ("prepare-vocab", "folder", "--root", str(slow_photos), "--preset", "scenes", *TINY)
    weights = str(save_weights(tmp_path / "weights.pt", TinyCNN()))
    frozen = [f"stage1.multipliers.{name}=0" for name in ("backbone", "backbone_bias")]
    train = ("train-stage1", "--no-word-vectors", "--backbone-weights", weights, "--set", frozen[0], "--set", frozen[1])
    workspace, large, small = tmp_path / "w", tmp_path / "w" / "large", tmp_path / "w" / "small"
    succeed(*prepare, "--name", "large", workspace=workspace)

    def kill_and_continue(*arguments: str, begun: Callable[[], bool]) -> str:
        job = start(*arguments, where=workspace)
        assert wait_until(lambda: job.process.poll() is not None or (len(job.members()) >= 3 and begun()), 60)
        assert job.process.poll() is None
        job.process.kill()
        job.process.wait()
        assert wait_until(lambda: not job.members(), 15), job.members()
        return succeed(*arguments, "--workers", "2", workspace=workspace).stderr

    stderr = kill_and_continue(*train, begun=lambda: _finished_rows(large / "cache") > 0)
    assert "features of train photos | 48/48" in stderr
    (cache,) = (large / "cache").glob("train-*.h5")
    _assert_of_two_kinds(read_store(cache, remedy="").arrays["features"][:, 0].astype(np.float32), 48)

    stderr = kill_and_continue("extract-features", begun=lambda: _finished_rows(large / "features") > 0)
    assert "embedding test photos | 48/48" in stderr
    store = read_store(large / "features" / "test.h5", remedy="")
    _assert_of_two_kinds(store.arrays["image_embeddings"], 48)

    resize = (*prepare, "--name", "small", "--resize-images")
    stderr = kill_and_continue(*resize, begun=lambda: len(list(small.glob("photos-*/*.png"))) > 5)
    assert "resizing photos | 100/100" in stderr
    dataset = Workspace(workspace).load_dataset()
    copies = [(dataset.root / image.path).read_bytes() for image in dataset.images]
    assert (dataset.name, len(copies), len(set(copies))) == ("small", 100, 2)
    assert not [path for path in workspace.rglob("*") if path.name.endswith((".partial", ".tmp"))]
