"""Photos as batches of views, read by worker processes."""

from __future__ import annotations

import multiprocessing.process
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dpce_cli.core.data.images import View, load_image
from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.data.shards import check_inside
from dpce_cli.core.errors import DataError
from dpce_cli.core.processes.collectives import gather_objects
from dpce_cli.core.processes.environment import launcher_is_gone
from dpce_cli.core.processes.interruption import STOP_SIGNALS, Interrupted, interrupts_held_back
from dpce_cli.core.progress import Reporter

_abandoned: list[Any] = []
"""Iterators that must not end by themselves: of a killed worker, one would wait for the rest of what the worker was
sending; half begun, one would raise."""


def read_views(
    root: Path,
    images: Sequence[CaptionedImage],
    view: View,
    *,
    batch_size: int,
    workers: int,
    order: Iterable[int] | None = None,
    pinned: bool = False,
) -> Iterator[tuple[list[int], Tensor, list[str]]]:
    """Load and view images below `root` in `order`, `batch_size` of them at a time.

    Yields the positions in `order` that loaded, their views as one uint8 tensor (positions, 3, h, w), and a
    message for each image that did not load, for the caller to pass to `Reporter.warn` and to count. A batch
    of which nothing loaded has no positions and an empty tensor of no particular shape.

    Args:
        order: indices of `images`, of any number; None for all of them once, as they stand.
        view: gets each image and its position, so that random views can be seeded by position; picklable,
            because `workers` processes run it (0: this process).
        pinned: yield views in memory that a GPU copies from by itself, while other things go on.

    Raises:
        DataError: one of the processes was ended from outside.
    """
    loader: DataLoader[Any] = DataLoader(
        _Views(root, images, view),
        batch_size=batch_size,
        sampler=enumerate(range(len(images)) if order is None else order),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_live_as_long_as_parent,
        pin_memory=pinned,
        generator=torch.Generator(),  # without it DataLoader would draw from the global one
    )
    batches, processes, end = _started(loader)
    while True:
        try:
            # An interrupt within could leave a queue's lock taken, for the end of the workers to wait for.
            with interrupts_held_back(), _deaths_told(processes):
                batch = next(batches, None)
            if batch is None:
                end.cancel()
                return
            yield batch.positions, torch.as_tensor(batch.views), batch.messages
        except BaseException:  # whoever reads stops early, too
            _abandoned.append(batches)
            end()
            raise


class _Views(Dataset[tuple[int, Tensor | str]]):
    def __init__(self, root: Path, images: Sequence[CaptionedImage], view: View) -> None:
        self.root, self.inside, self.view = root, os.path.realpath(root), view
        self.places = [(image.path, image.extent) for image in images]  # a worker needs no captions

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, Tensor | str]:
        position, index = place
        path, extent = self.places[index]
        try:
            check_inside(self.root / path, self.inside)
            image = load_image(self.root / path, extent)
        except DataError as error:
            return position, str(error)
        return position, self.view(image, position)


@dataclass
class _Loaded:
    """A batch; NumPy arrays reach the parent through a pipe, tensors would need shared memory, rare in containers."""

    positions: list[int]
    views: Any
    messages: list[str]

    def pin_memory(self) -> _Loaded:
        """Called by DataLoader, in a thread of its own where there are workers."""
        self.views = torch.from_numpy(self.views).pin_memory()
        return self


def _collate(items: list[tuple[int, Tensor | str]]) -> _Loaded:
    loaded = [(position, view) for position, view in items if isinstance(view, Tensor)]
    messages = [message for _, message in items if isinstance(message, str)]
    views = torch.stack([view for _, view in loaded]) if loaded else torch.empty(0, dtype=torch.uint8)
    return _Loaded([position for position, _ in loaded], views.numpy(), messages)


@contextmanager
def _deaths_told(workers: Sequence[multiprocessing.process.BaseProcess]) -> Iterator[None]:
    """Raise `DataError` in the block when one of `workers` has died, perhaps before.

    The rest of what it was sending would be waited for forever. DataLoader's own means against it raises wherever the
    program is, while it saves a checkpoint, say; it is undone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(*_: object) -> None:
        if any(worker.exitcode for worker in workers):
            raise DataError(
                "a process that reads photos was killed, probably for lack of memory; run the same command "
                "to continue, with fewer --workers, or with --workers 0"
            )

    before = signal.signal(signal.SIGCHLD, tell)
    try:
        tell()
        yield
    except RuntimeError:  # DataLoader's, in place of what `tell` raised
        tell()
        raise
    finally:
        signal.signal(signal.SIGCHLD, before)


def stop_without_launcher() -> None:
    """To be called between batches of work that is saved as it goes.

    Raises:
        Interrupted: the command that started this process is gone.
    """
    if launcher_is_gone():
        raise Interrupted("the command that started this process is gone; run it again to continue")


def warn_of_others(unread: list[str], reporter: Reporter) -> None:
    """Have the main process name what the other processes could not read; it has named its own already."""
    for problems in gather_objects(unread)[1:]:
        for problem in problems:
            reporter.warn(f"{problem}: skipped")


def _started(
    loader: DataLoader[Any],
) -> tuple[Iterator[Any], list[multiprocessing.process.BaseProcess], multiprocessing.util.Finalize]:
    """An iterator over the batches, its worker processes, and what kills them: now, or at the end of this process.

    Raises:
        DataError: the system has no more files or processes to give.
    """
    others = multiprocessing.active_children()
    try:
        with interrupts_held_back(), _deaths_told([]):
            batches = iter(loader)
    except OSError as error:
        _abandoned.append(error)  # its traceback holds the iterator
        _kill([process for process in multiprocessing.active_children() if process not in others])
        raise DataError(
            f"the worker processes that read photos cannot be started ({error.strerror}); choose fewer --workers, or "
            "raise the system's limits (ulimit -n, ulimit -u)"
        ) from error
    processes = [process for process in multiprocessing.active_children() if process not in others]
    # The priority comes before multiprocessing's own end, which asks the workers by SIGTERM and waits for them.
    return batches, processes, multiprocessing.util.Finalize(None, _kill, args=(processes,), exitpriority=10)


def _kill(processes: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for process in processes:
        process.kill()


def _live_as_long_as_parent(worker: int) -> None:
    """Leave stop signals, which reach every process of a terminal or a job, to the parent; end when it is gone.

    A worker that is blocked, sending a batch to a parent that was killed, would not notice by itself.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_without_parent, args=(os.getppid(),), daemon=True).start()


def _end_without_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
