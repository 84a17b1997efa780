"""Runs a measurement in processes of its own, and reads their memory.

The benchmark's process stays small, because the peak memory of a Linux process begins at that of the process that
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
    """With what torch's optimizers import when the first of them is made."""
    import torch

    value = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.1, fused=True)
    value.square().sum().backward()
    optimizer.step()
    return peak_mib()


def in_two_processes(function: Callable[..., T], *args: object) -> T:
    """What the first of two processes returns that Gloo joins."""
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
