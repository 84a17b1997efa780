"""Divide a job among several processes, one per GPU or CPU core, and exchange messages and tensors.

Process r of N takes the r-th of N equal shares. A single process uses the same functions; they exchange nothing.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from dpce_cli.core.errors import ConfigError, DpceError, ProcessGone, TrainingError
from dpce_cli.core.processes.devices import choose_device
from dpce_cli.core.processes.environment import local_processes, take_part
from dpce_cli.core.processes.interruption import Interrupted

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def rank() -> int:
    """The number of this process, from 0; process 0 writes files and reports."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Connect this process with the others of the job, and yield the device that it computes on.

    NCCL connects GPUs, one per process. Gloo connects CPUs, and exchanges small messages in every case.

    Raises:
        ConfigError: there is no such device, or it is a single GPU for several processes.
        ProcessGone: another process ended while this one waited for it.
        TrainingError: the GPU has too little memory.
    """
    in_job = take_part()
    try:
        with _process_group(device) if in_job else nullcontext(choose_device(device)) as chosen:
            yield chosen
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU has too little memory ({str(error).splitlines()[0]}); training needs less with a smaller "
            "batch_size or more accumulation_steps (--set), or with --precision bf16; or use --device cpu"
        ) from error


@contextmanager
def _process_group(device: str) -> Iterator[torch.device]:
    kind = choose_device(device).type if device == "auto" else device
    # Not "cuda": every process would use memory of the first GPU.
    chosen = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else kind)
    if chosen.type == "cuda" and kind != "cuda":
        raise ConfigError(f"--device {device}: each of several processes has its own GPU; choose auto or cuda")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_processes()))
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
        yield chosen
    except Interrupted:  # all processes are interrupted
        distributed.destroy_process_group()
        raise
    except RuntimeError as error:
        if "gloo" in str(error).lower() or isinstance(error, distributed.DistError):
            raise ProcessGone(
                f"another process has ended or never started ({str(error).splitlines()[-1]}); run the same command to "
                "continue from the last checkpoint"
            ) from error
        raise
    # Not after an error of this process alone: with NCCL it would wait for the others, and they for this process.
    distributed.destroy_process_group()


def shares(total: int) -> list[slice]:
    """The consecutive shares of `total` things, one per process; their lengths differ by at most one.

    >>> shares(5)
    [slice(0, 5, None)]
    """
    ends = [total * number // world_size() for number in range(world_size() + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def share(total: int) -> slice:
    """This process's share of `total` things."""
    return shares(total)[rank()]


def lengths(total: int) -> tuple[int, ...]:
    """The length of each process's share of `total` things."""
    return tuple(part.stop - part.start for part in shares(total))


def wait_for_all() -> None:
    """Return when every process has called this."""
    gather_objects(None)


def gather_objects(value: T) -> list[T]:
    """The `value` of every process, in the order of ranks; the same list on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def decided_by_first(value: Callable[[], T]) -> T:
    """Call `value` on process 0, and return the result on every process; an error of process 0 is raised on all.

    For questions that processes could answer differently, such as whether a file on a network disk exists.
    """
    if world_size() == 1:
        return value()
    outcome: T | DpceError | None = None
    if not rank():
        try:
            outcome = value()
        except DpceError as error:
            outcome = error
    decided = gather_objects(outcome)[0]
    if isinstance(decided, DpceError):
        raise decided
    return cast(T, decided)


def sum_in_place(values: Tensor) -> Tensor:
    """`values`, with the values of the other processes added."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


def maximum_in_place(values: Tensor) -> Tensor:
    """`values`, replaced by the maximum over all processes."""
    if world_size() > 1:
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values


def any_process(*flags: bool) -> list[bool]:
    """For each flag, whether it is true on any process."""
    return [bool(flag) for flag in maximum_in_place(torch.tensor(flags, dtype=torch.float32))]


def gather_to_first(rows: Tensor, total: int) -> Tensor:
    """On process 0, the `total` rows of which each process has a share, on the CPU; on others, their own rows."""
    rows = rows.detach().cpu().contiguous()
    if world_size() == 1:
        return rows
    if rank():
        distributed.send(rows, 0)
        return rows
    whole = rows.new_empty(total, *rows.shape[1:])
    for number, part in enumerate(shares(total)):
        if number:
            distributed.recv(whole[part], number)
        else:
            whole[part] = rows
    return whole


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes, one process after the other, with gradients; process r has `counts[r]` rows.

    A loss of all rows has the same value on every process. Each row's gradient goes to the process that the row came
    from, multiplied by the number of processes, because `DistributedDataParallel` divides by this number.
    """
    if world_size() == 1:
        return rows
    return cast(Tensor, _GatherRows.apply(rows, sum(counts[: rank()]), sum(counts)))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, start: int, total: int) -> Tensor:
        ctx.own = slice(start, start + len(rows))
        # A sum with zeros works for shares of any length. It costs twice a gather, but rows are small beside gradients.
        whole = rows.new_zeros(total, *rows.shape[1:])
        whole[ctx.own] = rows
        return sum_in_place(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.own] * world_size(), None, None


def in_parallel(module: M, device: torch.device) -> M:
    """`module` with its gradients averaged over the processes; unchanged if it has no trainable parameters."""
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    ddp: Any = nn.parallel.DistributedDataParallel
    # Batch norms are synchronised already. Newer versions of PyTorch have renamed this argument.
    renamed = "forward_sync_buffers" in inspect.signature(ddp).parameters
    unsynced = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    devices = [device] if device.type == "cuda" else None
    parallel = ddp(module, device_ids=devices, gradient_as_bucket_view=True, **unsynced)
    return cast(M, parallel)
