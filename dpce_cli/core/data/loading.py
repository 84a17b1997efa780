"""Read photos as batches of views, in worker processes."""

from __future__ import annotations

import multiprocessing.process
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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

T = TypeVar("T")

_abandoned: list[Any] = []
"""Iterators that must never be deleted: the end of one would wait for the message of a killed worker, or raise an error
if the iterator was not completely started."""


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
    """Load images in the folder `root` in the given `order`, `batch_size` at a time, and make a view of each.

    Yields the positions in `order` of the images that were loaded, their views as one uint8 tensor
    (positions, 3, h, w), and one message per image that could not be loaded, for `Reporter.warn`. If no image of a
    batch could be loaded, there are no positions, and the tensor is empty.

    Args:
        order: indices of `images`, of any number; None stands for all images once.
        view: takes each image and its position, which can be a random seed. It must be picklable, because `workers`
            processes call it (0: this process).
        pinned: yield views in pinned memory, from which a GPU copies while other work continues.

    Raises:
        DataError: a worker process was killed.
    """
    loader: DataLoader[Any] = DataLoader(
        _Views(root, images, view),
        batch_size=batch_size,
        sampler=enumerate(range(len(images)) if order is None else order),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_end_with_parent,
        pin_memory=pinned,
        generator=torch.Generator(),  # DataLoader would draw a number from the global generator
    )
    batches, processes, end = _started(loader)
    while True:
        try:
            # An interrupt inside could leave a queue locked forever, and the workers would never end.
            with interrupts_held_back(), _worker_deaths_reported(processes):
                batch = next(batches, None)
            if batch is None:
                end.cancel()
                return
            yield batch.positions, torch.as_tensor(batch.views), batch.messages
        except BaseException:  # also if the caller stops early
            _abandoned.append(batches)
            end()
            raise


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Compute each item in a background thread while the item before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


class _Views(Dataset[tuple[int, Tensor | str]]):
    def __init__(self, root: Path, images: Sequence[CaptionedImage], view: View) -> None:
        self.root, self.inside, self.view = root, os.path.realpath(root), view
        self.files = [(image.path, image.extent) for image in images]  # a worker needs no captions

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Tensor | str]:
        position, index = key
        path, extent = self.files[index]
        try:
            check_inside(self.root / path, self.inside)
            image = load_image(self.root / path, extent)
        except DataError as error:
            return position, str(error)
        return position, self.view(image, position)


@dataclass
class _Loaded:
    """A batch. Its views are a NumPy array, which is sent through a pipe: tensors need much shared memory."""

    positions: list[int]
    views: Any
    messages: list[str]

    def pin_memory(self) -> _Loaded:
        """Called by DataLoader."""
        self.views = torch.from_numpy(self.views).pin_memory()
        return self


def _collate(items: list[tuple[int, Tensor | str]]) -> _Loaded:
    loaded = [(position, view) for position, view in items if isinstance(view, Tensor)]
    messages = [message for _, message in items if isinstance(message, str)]
    views = torch.stack([view for _, view in loaded]) if loaded else torch.empty(0, dtype=torch.uint8)
    return _Loaded([position for position, _ in loaded], views.numpy(), messages)


@contextmanager
def _worker_deaths_reported(workers: Sequence[multiprocessing.process.BaseProcess]) -> Iterator[None]:
    """Raise `DataError` in the block if one of `workers` has died, in the block or before.

    Otherwise this process could wait forever for the rest of the worker's message. DataLoader has a signal handler for
    this, but it raises at any moment, for example while a checkpoint is saved; it is replaced here.
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
    except RuntimeError:  # DataLoader's own error, in the place of the one that `tell` raised
        tell()
        raise
    finally:
        signal.signal(signal.SIGCHLD, before)


def stop_without_launcher() -> None:
    """Stop work that is saved after each batch if the launcher of this process has ended.

    Raises:
        Interrupted: the launcher has ended.
    """
    if launcher_is_gone():
        raise Interrupted("the command that started this process has ended; run it again to continue")


def warn_of_others(unread: list[str], reporter: Reporter) -> None:
    """On the main process, warn of the photos that the other processes could not read."""
    for problems in gather_objects(unread)[1:]:
        for problem in problems:
            reporter.warn(f"{problem}: skipped")


def _started(
    loader: DataLoader[Any],
) -> tuple[Iterator[Any], list[multiprocessing.process.BaseProcess], multiprocessing.util.Finalize]:
    """An iterator over the batches, its workers, and a call that kills them (this process calls it when it ends).

    Raises:
        DataError: the limit of open files or of processes is reached.
    """
    others = multiprocessing.active_children()
    try:
        with interrupts_held_back(), _worker_deaths_reported([]):
            batches = iter(loader)
    except OSError as error:
        _abandoned.append(error)  # its traceback holds the iterator
        _kill([process for process in multiprocessing.active_children() if process not in others])
        raise DataError(
            f"the worker processes that read photos cannot be started ({error.strerror}); choose fewer --workers, or "
            "raise the system's limits (ulimit -n, ulimit -u)"
        ) from error
    processes = [process for process in multiprocessing.active_children() if process not in others]
    # With this priority, it runs before multiprocessing's own exit function, which sends SIGTERM and waits.
    return batches, processes, multiprocessing.util.Finalize(None, _kill, args=(processes,), exitpriority=10)


def _kill(processes: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for process in processes:
        process.kill()


def _end_with_parent(worker: int) -> None:
    """Ignore stop signals, which the parent handles, and end when the parent has ended.

    A worker that sends a batch to a killed parent is blocked, and would not notice it.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_without_parent, args=(os.getppid(),), daemon=True).start()


def _end_without_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
