"""Indexing that is killed, or shared by several processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpce_cli.core.galleries.gallery import open_gallery
from tests.command_line import succeed
from tests.test_stopping import Job, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds processes as Linux lists them"),
]
KILLS = int(os.environ.get("DPCE_TEST_KILLS", "5"))
"""How often the test of kills kills; more by hand."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), np.uint8)
    for number, colour in enumerate(colours):
        Image.fromarray(colour).save(folder / f"{number:03}.png")
        os.utime(folder / f"{number:03}.png", (10**9,) * 2)
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start_job(workspace: Path, *arguments: str) -> Job:
        jobs.append(Job(workspace, *arguments))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.send(signal.SIGKILL)
        job.process.communicate()


def content(workspace: Path) -> dict[str, Any]:
    with closing(open_gallery(workspace / "galleries" / "photos")) as catalogue:
        rows = catalogue.embeddings(catalogue.row_count())
        return {
            os.fsdecode(path): rows[row]
            for path, row in catalogue.database.execute(
                "SELECT path, row FROM items LEFT JOIN contents ON contents.id = content"
            )
        }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)


def is_killed(job: Job, lock: Path, seconds: float) -> bool:
    """Kill the indexer some time after it has begun; false where it had ended by then."""
    wait_until(lambda: lock.exists() or job.process.poll() is not None, 60)
    time.sleep(seconds)
    is_running = job.process.poll() is None
    job.process.kill()
    assert job.process.wait() == (-signal.SIGKILL if is_running else 0)
    assert wait_until(lambda: not job.members(), 15), job.members()
    return is_running


def test_a_gallery_that_was_killed_again_and_again_is_the_one_made_from_scratch(
    workspace: Path, photos: Path, start: Callable[..., Job], tmp_path: Path
) -> None:
    scratch = shutil.copytree(workspace, tmp_path / "scratch")
    succeed("index", photos, "--workers", "0", workspace=scratch)
    gallery, chance, killed = workspace / "galleries" / "photos", random.Random(0), 0
    while killed < KILLS:
        (gallery / "lock").unlink(missing_ok=True)  # the next one makes it when its imports are done
        if is_killed(start(workspace, "index", str(photos)), gallery / "lock", chance.uniform(0, 2)):
            killed += 1
        else:  # it was faster: begin again
            assert_same(content(workspace), content(scratch))
            shutil.rmtree(gallery)
    succeed("index", photos, "--workers", "0", workspace=workspace)
    assert_same(content(workspace), content(scratch))


def test_two_processes_make_the_gallery_that_one_makes(
    workspace: Path, photos: Path, start: Callable[..., Job], tmp_path: Path
) -> None:
    scratch = shutil.copytree(workspace, tmp_path / "scratch")
    succeed("index", photos, "--workers", "0", workspace=scratch)
    (photos / "bad.png").write_text("no photo")
    job = start(workspace, "index", str(photos), "--processes", "2")
    stdout, stderr = job.process.communicate(timeout=120)
    assert (job.process.returncode, stdout) == (
        0,
        "gallery photos: 300 photos (301 new, 300 embedded, 1 unreadable)\n",
    ), stderr
    made = content(workspace)
    del made["bad.png"]
    assert_same(made, content(scratch))
    hits = json.loads(succeed("retrieve", "-g", "photos", "-q", "a man", "--json", workspace=workspace).stdout)
    assert len(hits) == 10


def test_a_refused_gallery_ends_all_processes_in_one_line(
    workspace: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    job = start(workspace, "index", str(tmp_path / "missing"), "--processes", "2")
    _, stderr = job.process.communicate(timeout=120)
    assert job.process.returncode == 1
    assert [line for line in stderr.splitlines() if line.startswith("Error: ")] == stderr.splitlines()[-1:]
    assert "there is no such folder" in stderr
