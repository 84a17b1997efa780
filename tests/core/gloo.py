"""Functions run in several processes at once, joined by Gloo as training's are."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import torch
from torch.multiprocessing.spawn import spawn

from dpce_cli.core.processes.collectives import process_group


def in_processes(count: int, function: Callable[..., None], *arguments: object) -> None:
    """Call a function of a module in `count` processes; raises what one of them raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_join, (count, port, function, arguments), nprocs=count)


def _join(rank: int, count: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    with process_group("cpu"):
        function(*arguments)
