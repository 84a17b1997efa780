from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.data.images import View, plain_view
from dpce_cli.core.data.loading import _collate, read_views
from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.data.shards import extent, members
from dpce_cli.core.errors import DataError
from tests.tars import write_tar


def photo(path: str) -> CaptionedImage:
    return CaptionedImage(image_id=path, path=path, split="train", captions=("a photo",))


def tiny_view(image: Image.Image, position: int) -> Tensor:
    view = plain_view(image, resize=2, crop=2)
    view[0, 0, 0] = position
    return view


@pytest.fixture
def album(tmp_path: Path) -> list[CaptionedImage]:
    for number in range(7):
        Image.new("RGB", (4, 4), (0, number, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "6.png").unlink()
    return [photo(f"{number}.png") for number in range(7)]


@pytest.mark.parametrize("workers", [0, 1])
def test_views_come_in_order_and_bad_files_are_named(tmp_path: Path, album: list[CaptionedImage], workers: int) -> None:
    state = torch.get_rng_state()
    batches = list(read_views(tmp_path, album, tiny_view, batch_size=3, workers=workers))
    assert torch.get_rng_state().equal(state)
    assert [positions for positions, _, _ in batches] == [[0, 1, 2], [4, 5], []]
    for positions, views, _ in batches[:2]:
        assert views.shape == (len(positions), 3, 2, 2)
        assert views.dtype == torch.uint8
        assert views[:, 0, 0, 0].tolist() == positions
        assert views[:, 1, 0, 0].tolist() == positions
    assert len(batches[2][1]) == 0
    messages = [message for _, _, errors in batches for message in errors]
    assert [message.split(":")[0] for message in messages] == [f"{tmp_path}/3.png", f"{tmp_path}/6.png"]


def test_a_photo_that_has_become_a_link_out_of_the_root_is_not_opened(tmp_path: Path) -> None:
    root = tmp_path / "album"
    root.mkdir()
    for path in (root / "inside.png", tmp_path / "secret.png"):
        Image.new("RGB", (4, 4)).save(path)
    (root / "outward.png").symlink_to(tmp_path / "secret.png")
    (root / "inward.png").symlink_to(root / "inside.png")
    album = [photo("outward.png"), photo("inward.png")]
    (positions, _, messages), *_ = read_views(root, album, tiny_view, batch_size=2, workers=0)
    assert positions == [1]
    assert [message.partition("; ")[0] for message in messages] == [
        f"{root}/outward.png: a link that leads out of the data set's folder"
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_views_from_a_shard_are_those_of_the_files(tmp_path: Path, album: list[CaptionedImage], workers: int) -> None:
    shard = write_tar(
        tmp_path / "a.tar", [(f"{number}.png", (tmp_path / f"{number}.png").read_bytes()) for number in range(6)]
    )
    with open(shard, "rb") as file:
        places = {f"a.tar/{member.name}": extent(file, member) for member in members(file)}
    stored = [replace(photo(path), extent=places.get(path)) for path in (f"a.tar/{image.path}" for image in album)]
    loose = read_views(tmp_path, album, tiny_view, batch_size=3, workers=0)
    for (expected, views, bad), (positions, stored_views, messages) in zip(
        loose, read_views(tmp_path, stored, tiny_view, batch_size=3, workers=workers), strict=True
    ):
        assert positions == expected
        assert stored_views.equal(views)
        assert len(messages) == len(bad)
        assert all(message.startswith(f"{tmp_path}/a.tar/") for message in messages)


def test_a_pinned_batch_is_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = list[Tensor]()

    def pin(self: Tensor) -> Tensor:
        pinned.append(self)
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = _collate([(4, torch.ones(3, 2, 2, dtype=torch.uint8)), (5, "5.png: damaged")]).pin_memory()
    assert (batch.positions, batch.messages) == ([4], ["5.png: damaged"])
    assert batch.views is pinned[0]
    assert batch.views.tolist() == torch.ones(1, 3, 2, 2).tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 1])
def test_views_for_a_gpu_are_pinned(tmp_path: Path, album: list[CaptionedImage], workers: int) -> None:
    views = read_views(tmp_path, album[:3], tiny_view, batch_size=3, workers=workers, pinned=True)
    assert [batch.is_pinned() for _, batch, _ in views] == [True]


def test_leaving_the_iteration_early_ends_the_workers(tmp_path: Path, album: list[CaptionedImage]) -> None:
    views = read_views(tmp_path, album * 50, tiny_view, batch_size=2, workers=1)
    assert next(views)[0] == [0, 1]
    start = time.monotonic()
    del views
    assert time.monotonic() - start < 5


def large_view(image: Image.Image, position: int) -> Tensor:
    return torch.zeros(3, 512, 512, dtype=torch.uint8)


def endless_view(image: Image.Image, position: int) -> Tensor:
    time.sleep(60 if position else 0)
    return tiny_view(image, position)


@pytest.mark.parametrize("view", [large_view, endless_view])
def test_a_killed_worker_is_reported_where_its_photos_are_awaited(
    tmp_path: Path, album: list[CaptionedImage], view: View
) -> None:
    """The worker is killed while it sends more than fits into a pipe, or while it works."""
    handler, others = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
    views = read_views(tmp_path, album, view, batch_size=1, workers=2)
    next(views)
    assert signal.getsignal(signal.SIGCHLD) == handler
    worker = (set(multiprocessing.active_children()) - others).pop()
    threading.Timer(0.5, worker.kill).start()
    if view is large_view:
        worker.join()
    with pytest.raises(DataError, match=r"a process that reads photos was killed, .* with fewer --workers"):
        list(views)


@pytest.mark.parametrize("more", [1, 4, 7])
def test_too_few_open_files_for_the_workers_end_in_one_message(
    tmp_path: Path, album: list[CaptionedImage], more: int
) -> None:
    """For any number of workers that have started by then; pytest also fails on errors when objects are deleted."""
    others, (soft, hard) = set(multiprocessing.active_children()), resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
    try:
        with pytest.raises(DataError, match=r"cannot be started \(Too many open files\); choose fewer --workers"):
            next(read_views(tmp_path, album, tiny_view, batch_size=1, workers=2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    gc.collect()
    for worker in set(multiprocessing.active_children()) - others:
        worker.join(10)
    assert set(multiprocessing.active_children()) <= others


INTERRUPTED = """
import sys
from pathlib import Path
from dpce_cli.core.data.images import plain_view
from dpce_cli.core.data.loading import _collate, read_views
from dpce_cli.core.data.records import CaptionedImage

photo = CaptionedImage(image_id="0", path="0.png", split="train", captions=("a photo",))

def view(image, position):
    return plain_view(image, resize=2, crop=2)

try:
    for batch in read_views(Path(sys.argv[1]), [photo] * 10**6, view, batch_size=1, workers=1):
        print(".", flush=True)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_ends_reading_with_workers_at_once_and_quietly(tmp_path: Path, album: list[CaptionedImage]) -> None:
    """There is no deadline except pytest's: a busy machine takes long to start and to stop the process."""
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
            out, err = process.communicate()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert out.endswith("stopped\n")
    assert err == ""


def test_real_photos_load(shared_data: Path) -> None:
    folder = shared_data / "flickr8k" / "Flicker8k_Dataset"
    photos = [photo(path.name) for path in sorted(folder.iterdir())[:8]]
    ((positions, views, errors),) = read_views(folder, photos, real_view, batch_size=8, workers=0)
    assert (positions, errors) == (list(range(8)), [])
    assert views.shape == (8, 3, 224, 224)
    assert views.float().std() > 20


def real_view(image: Image.Image, position: int) -> Tensor:
    return plain_view(image, resize=256, crop=224)
