"""Functions run in several processes at once, joined by Gloo as training's are."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
from torch.multiprocessing.spawn import start_processes

from dpce_cli.core.processes.collectives import process_group
from dpce_cli.core.processes.environment import LAUNCHER

# The processes are forks of a server that has imported these: each would need seconds to import them.
multiprocessing.set_forkserver_preload(["tests.core.tiny", "pytest", "torch.utils.tensorboard"])


def in_processes(count: int, function: Callable[..., None], *arguments: object) -> None:
    """Call a function of a module in `count` processes; raises what one of them raises."""
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
