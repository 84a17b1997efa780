from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command_line import dpce, succeed

PLAN = ("plan", "--preset", "scenes", "--vocabulary", "500")


def gib(line: str) -> float:
    found = re.search(r"([\d,.]+) (M|G)iB", line)
    assert found
    return float(found[1].replace(",", "")) / (1024 if found[2] == "M" else 1)


def test_the_plan_says_memory_steps_time_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--images", "1M", "--set", "stage1.batch_size=100", "--set", "stage1.epochs=3")
    lines = succeed(*PLAN, *arguments, "--images-per-second", "1000").stdout.splitlines()
    assert lines[0] == "stage 1 on 1,000,000 photos, preset scenes, 1 device"
    assert lines[1] == "batch: 100 photos, 100 per device; learning rates are not scaled"
    assert lines[3] == "steps: 3 epochs of 10,000"
    assert lines[4] == "time: 16m40s per epoch, 50m00s altogether"
    assert lines[5].startswith("disk: ")
    assert list(tmp_path.iterdir()) == []

    more = succeed(*PLAN, *arguments, "--gpus", "8").stdout.splitlines()
    assert more[1] == "batch: 100 photos, 12.5 per device; learning rates are not scaled"
    assert gib(more[2]) < gib(lines[2]) / 3
    assert more[3].startswith("more memory on the first machine while it saves: ")
    assert more[5] == "time: unknown; give the speed with --images-per-second"


def test_a_batch_of_fewer_photos_than_devices_is_refused() -> None:
    error = dpce(*PLAN, "--images", "1k", "--gpus", "64", "--set", "stage1.batch_size=32").error
    assert error.startswith("Error: stage1.batch_size=32 is too small for 64 processes: each needs a photo")


@pytest.mark.parametrize("images", ["many", "0", "10m", "-1", "2000G", "9" * 5000])
def test_what_is_no_number_of_photos_is_refused(images: str) -> None:
    outcome = dpce(*PLAN, "--images", images)
    assert outcome.code == 2
    assert "write 5000, 300k or 10M" in " ".join(outcome.stderr.replace("│", " ").split())
