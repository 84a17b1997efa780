"""Run a measurement in new processes, and read their memory.

The benchmark's own process stays small: on Linux, the peak memory of a new process is at least that of the process that
started it.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_own_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_after_imports() -> float:
    """Peak memory in MiB, after the imports of PyTorch's first optimizer."""
    import torch

    value = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.1, fused=True)
    value.square().sum().backward()
    optimizer.step()
    return peak_mib()


def in_two_processes(function: Callable[..., T], *args: object) -> T:
    """Call a function in two processes that are connected by Gloo; returns the result of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        first, _ = [pool.submit(join, number, port, function, args) for number in range(2)]
        return first.result()


def join(number: int, port: str, function: Callable[..., T], args: tuple[object, ...]) -> T:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    from dpce_cli.core.processes.collectives import process_group

    with process_group("cpu"):
        return function(*args)
