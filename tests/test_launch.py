from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from dpce_cli.launch import _reason


def failure(folder: Path, number: int, code: int, message: str = "") -> ProcessFailure:
    """The failure of process `number`, recorded by `report_failure` at time `number`."""
    path = folder / f"{number}.json"
    if message:
        recorded = {"message": message, "extraInfo": {"py_callstack": "", "timestamp": str(number)}}
        path.write_text(json.dumps({"message": recorded}))
    return ProcessFailure(local_rank=number, pid=1, exitcode=code, error_file=str(path))


def test_the_error_of_the_first_process_that_failed_by_itself_is_reported(tmp_path: Path) -> None:
    failures = {
        0: failure(tmp_path, 0, 1, "ProcessGone: another process has ended"),
        1: failure(tmp_path, 1, -signal.SIGTERM),
        2: failure(tmp_path, 2, 1, "DataError: photo: missing"),
        3: failure(tmp_path, 3, 1, "DataError: another photo"),
    }
    assert _reason(failures, 4) == "photo: missing"


@pytest.mark.parametrize(
    ("number", "why"),
    [(signal.SIGKILL, ", probably for lack of memory"), (signal.SIGABRT, "")],
)
def test_a_process_killed_by_a_signal_is_reported_before_those_that_lost_it(
    tmp_path: Path, number: signal.Signals, why: str
) -> None:
    failures = {0: failure(tmp_path, 0, 1, "TrainingError: lost"), 1: failure(tmp_path, 1, -number)}
    assert _reason(failures, 2) == (
        f"process 1 of 2 was killed by {number.name}{why}; the others were stopped; "
        "the same command continues from the last checkpoint"
    )


def test_a_bug_refers_to_its_traceback(tmp_path: Path) -> None:
    assert _reason({0: failure(tmp_path, 0, 1)}, 2).startswith(
        "process 0 of 2 ended with exit code 1, for the reason above; the same command"
    )
