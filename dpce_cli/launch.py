"""Run the same command line in several processes on this machine, with PyTorch's elastic launcher.

`torchrun` starts the processes of several machines instead.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from typing import TYPE_CHECKING

from dpce_cli.core.errors import ConfigError, DpceError, ProcessGone
from dpce_cli.core.processes.environment import LAUNCHER, is_main_process, take_part

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_INTERRUPTED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
"""Exit codes of processes that a stop signal has stopped."""


def launch(gpus: int | None, processes: int | None, device: str) -> str:
    """Start the processes that the user asks for, wait for them and exit; return in each of these processes.

    For a single process, nothing is started.

    Args:
        gpus: number of GPUs of this machine, one per process.
        processes: number of CPU processes.
        device: as given on the command line.

    Returns:
        The device for `process_group`.

    Raises:
        ConfigError: the machine has fewer GPUs, or the arguments exclude each other.
        DpceError: the error of the first process that failed.
    """
    in_job = take_part()
    if in_job and is_main_process() and LAUNCHER not in os.environ:
        others = int(os.environ["WORLD_SIZE"]) - 1
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        print(f"waiting at {address} for {others} other processes, for up to 30 minutes", file=sys.stderr)
    kind, count = requested(gpus, processes, device)
    if in_job:
        return kind
    if gpus is not None:
        from torch import cuda

        if cuda.device_count() < count:
            raise ConfigError(f"--gpus {count}: this machine has {cuda.device_count()}; choose at most that many")
    if count > 1:
        sys.exit(_run(count))
    return kind


def requested(gpus: int | None, processes: int | None, device: str) -> tuple[str, int]:
    """The device for `process_group`, and the number of processes that the user asks for.

    Raises:
        ConfigError: the options exclude each other.
    """
    if gpus is None and processes is None:
        return device, 1
    if gpus is not None and processes is not None:
        raise ConfigError("--gpus and --processes exclude each other; --processes is for CPUs")
    kind, option = ("cpu", "--processes") if gpus is None else ("cuda", "--gpus")
    if device not in ("auto", kind):
        raise ConfigError(f"{option} does not go with --device {device}; leave --device out")
    return kind, gpus or processes or 1


def report_failure(error: DpceError) -> bool:
    """Report an error to the launcher; whether there is a launcher that shows it to the user."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return LAUNCHER in os.environ


def _run(count: int) -> int:
    """Run this command line in `count` processes; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the error below says the same
    os.environ[LAUNCHER] = str(os.getpid())
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as error:
            codes = [failure.exitcode for failure in error.failures.values() if failure.exitcode in _INTERRUPTED]
            if codes:
                return codes[0]
            raise DpceError(_reason(error.failures, count)) from None
    return 0


def _reason(failures: dict[int, ProcessFailure], count: int) -> str:
    """Why the first process failed, apart from those that failed because of another process."""

    def is_consequence(failure: ProcessFailure) -> bool:
        return failure.exitcode == -signal.SIGTERM or _message(failure).startswith(ProcessGone.__name__)

    number, failure = min(
        failures.items(), key=lambda item: (is_consequence(item[1]), item[1].exitcode >= 0, item[1].timestamp)
    )
    again = "the same command continues from the last checkpoint"
    if failure.exitcode < 0:
        why = ", probably for lack of memory" if failure.exitcode == -signal.SIGKILL else ""
        return (
            f"process {number} of {count} was killed by {failure.signal_name()}{why}; the others were stopped; {again}"
        )
    if message := _message(failure):
        return message.partition(": ")[2]
    return f"process {number} of {count} ended with exit code {failure.exitcode}, for the reason above; {again}"


def _message(failure: ProcessFailure) -> str:
    """The error that `report_failure` recorded, as `Type: message`; empty if there is none."""
    recorded = failure.error_file_data.get("message")
    return str(recorded["message"]) if isinstance(recorded, dict) else ""
