from __future__ import annotations

import os

import pytest

from dpce_cli.commands import options
from dpce_cli.commands.options import number_of_workers


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 2), (2, 1, 2), (16, 1, 8), (64, 1, 16), (64, 8, 4)])
def test_half_of_the_cores_decode_photos_and_processes_divide_them(
    cores: int, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(options, "local_processes", lambda: processes)
    assert number_of_workers(None) == workers


def test_the_number_of_workers_can_be_chosen() -> None:
    assert number_of_workers(0) == 0
    assert number_of_workers(3) == 3
