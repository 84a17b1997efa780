"""The command line in several processes, started by itself and by torchrun."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dpce_cli.core.processes import environment
from tests.command_line import SCENES, dpce, read_checkpoint, succeed

ROOT = Path(__file__).parents[1]
DPCE = ("-m", "tests.command_line")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a data set, without models."""
    folder = tmp_path_factory.mktemp("processes") / "workspace"
    succeed(*SCENES, workspace=folder)
    return folder


@contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def train(workspace: Path, epochs: int, *arguments: str) -> tuple[str | Path, ...]:
    return (
        *DPCE, "train-stage1", "--no-word-vectors", "--fresh", "--workers", "0", "--workspace", workspace,
        "--epochs", str(epochs), *arguments,
    )  # fmt: skip


def read_until(process: subprocess.Popen[str], part: str) -> str:
    """The lines of stderr up to the one that contains `part`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if part in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def step(workspace: Path) -> int:
    return read_checkpoint(workspace / "scenes" / "stage1" / "last.pt").step


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_after_the_same_step(workspace: Path) -> None:
    with running(*train(workspace, 1000, "--processes", "2")) as process:
        said = read_until(process, "epoch 2/1000 validation")
        assert "2 processes share each batch of 4 photos, 2 each, and the classes; the learning rates are" in said
        assert said.count("word vectors: ") == 1
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    stopped = step(workspace)
    assert stopped >= 6
    assert stderr.splitlines()[-1] == f"Interrupted: stopped at step {stopped}; the same command continues there"


def workers(launcher: int) -> dict[int, int]:
    """Ids of the processes that `launcher` started, by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for child in children:
        variables = dict(
            variable.split("=", 1)
            for variable in Path(f"/proc/{child}/environ").read_text().split("\0")
            if "=" in variable
        )
        if "RANK" in variables:
            found[int(variables["RANK"])] = int(child)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes as Linux lists them")
def test_a_process_that_dies_ends_the_run_with_a_state_to_continue_from(workspace: Path) -> None:
    with running(*train(workspace, 1000, "--processes", "2")) as process:
        read_until(process, "epoch 2/1000 validation")
        os.kill(workers(process.pid)[1], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == (
        "Error: process 1 of 2 was killed by SIGKILL, probably for lack of memory; the others were stopped; "
        "the same command continues from the last checkpoint"
    )
    assert step(workspace) >= 6


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_stop_after_the_same_step(workspace: Path) -> None:
    with running(*train(workspace, 1000, "--processes", "2")) as process:
        read_until(process, "epoch 2/1000 validation")
        process.kill()
        stdout, stderr = process.communicate(timeout=60)  # the other processes keep its pipes open
    assert stdout == ""
    assert "Traceback" not in stderr
    stopped = step(workspace)
    assert stopped >= 6
    assert stderr.splitlines()[-1] == f"Interrupted: stopped at step {stopped}; the same command continues there"


@pytest.mark.slow
def test_an_error_of_all_processes_is_reported_once(workspace: Path) -> None:
    with running(*train(workspace, 1, "--processes", "3", "--set", "stage1.batch_size=2")) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.count("Error: ") == 1
    assert stderr.splitlines()[-1] == (
        "Error: stage1.batch_size=2 is too small for 3 processes: each needs a photo; raise it with --set, or "
        "use fewer processes"
    )


@pytest.mark.slow
def test_torchrun_on_two_machines_trains_one_model(workspace: Path) -> None:
    """Both machines are this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["-m", "torch.distributed.run", "--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    arguments = train(workspace, 1, "--device", "cpu")
    with (
        running(*command, "--node-rank=0", *arguments) as first,
        running(*command, "--node-rank=1", *arguments) as other,
    ):
        assert other.communicate(timeout=60)[0] == ""
        stdout, stderr = first.communicate(timeout=60)
    assert (first.returncode, other.returncode) == (0, 0)
    assert "2 processes share each batch" in stderr
    assert stdout.startswith("best model: ")
    assert step(workspace) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--gpus", "2", "--processes", "2"),
            "--gpus and --processes exclude each other; --processes is for CPUs",
        ),
        (("--gpus", "2", "--device", "cpu"), "--gpus does not go with --device cpu; leave --device out"),
        (("--processes", "2", "--device", "cuda"), "--processes does not go with --device cuda; leave --device out"),
        (("--gpus", "99"), f"--gpus 99: this machine has {torch.cuda.device_count()}; choose at most that many"),
    ],
)
def test_an_impossible_start_is_refused_before_any_process_starts(
    workspace: Path, arguments: tuple[str, ...], message: str
) -> None:
    for command in ("train-stage1", "train-stage2"):
        assert dpce(command, *arguments, workspace=workspace).error.startswith(f"Error: {message}")


@pytest.fixture
def left_by_a_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_takes_part", False)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)


def test_variables_that_a_scheduler_left_do_not_silence_a_command_that_runs_alone(
    left_by_a_scheduler: None, workspace: Path
) -> None:
    assert dpce("eval", workspace=workspace).error.startswith("Error: ")


def test_a_distributed_command_says_which_variables_a_scheduler_left_out(
    left_by_a_scheduler: None, workspace: Path
) -> None:
    assert dpce("train-stage1", workspace=workspace).error == (
        "Error: the environment says RANK=3 and WORLD_SIZE=4, as in a job of several processes, but not LOCAL_RANK and "
        "MASTER_ADDR and MASTER_PORT; unset RANK and WORLD_SIZE to run alone, or start the processes with torchrun"
    )


@pytest.mark.parametrize(("name", "value"), [("RANK", "4"), ("MASTER_PORT", "x")])
def test_invalid_variables_of_a_launcher_are_named(
    left_by_a_scheduler: None, workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for other in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(other, "1")
    monkeypatch.setenv(name, value)
    assert f"the environment says {name}=" in dpce("train-stage1", workspace=workspace).error


def test_a_world_of_one_process_is_alone(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    succeed("train-stage1", "--no-word-vectors", "--fresh", "--workers", "0", "--epochs", "1", workspace=workspace)
