"""Run functions in several processes at once, which exchange messages by Gloo as in training on CPUs."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
from torch.multiprocessing.spawn import start_processes

from dpce_cli.core.processes.collectives import process_group
from dpce_cli.core.processes.environment import LAUNCHER

FORKS = multiprocessing.get_context("forkserver")
"""Starts processes as forks of one that has imported torch, which takes seconds."""
FORKS.set_forkserver_preload(["tests.core.tiny", "pytest", "torch.utils.tensorboard"])


def in_processes(count: int, function: Callable[..., None], *arguments: object) -> None:
    """Call a module's function in `count` processes; raise the error that one of them raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_join, (count, port, function, arguments), nprocs=count, start_method="forkserver")


def _join(rank: int, count: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LAUNCHER: str(os.getppid()),
    }  # fmt: skip
    torch.set_num_threads(1)
    with process_group("cpu"):
        function(*arguments)
