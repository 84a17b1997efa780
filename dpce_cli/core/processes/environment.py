"""This process's role in a job of several processes, from the launcher's environment variables."""

from __future__ import annotations

import os

from dpce_cli.core.errors import ConfigError

LAUNCHER = "DPCE_LAUNCHER"
"""Environment variable with the process id of the `dpce` command that started this process."""

_PARENT = os.getppid()
_takes_part = False


def take_part() -> bool:
    """Make this process a part of the job that the environment describes; false where it describes none.

    Only distributed commands call this: schedulers leave such variables in the environment of other commands, too.

    Raises:
        ConfigError: a variable is missing or not a number.
    """
    global _takes_part
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    alone = "unset RANK and WORLD_SIZE to run alone, or start the processes with torchrun"
    missing = [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"the environment says RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']}, as in a job of "
            f"several processes, but not {' and '.join(missing)}; {alone}"
        )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise ConfigError(f"the environment says {name}={os.environ[name]!r}, which is not a number; {alone}")
    if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
        raise ConfigError(
            f"the environment says RANK={os.environ['RANK']} of WORLD_SIZE={os.environ['WORLD_SIZE']}; {alone}"
        )
    _takes_part = True
    return True


def local_processes() -> int:
    """The number of the job's processes on this machine, as far as the environment says it."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))) if _takes_part else 1


def is_main_process() -> bool:
    """Whether this process writes files and reports."""
    return not _takes_part or os.environ["RANK"] == "0"


def launcher_is_gone() -> bool:
    """Whether the launcher of this process has ended."""
    return _takes_part and os.getppid() != int(os.environ.get(LAUNCHER, _PARENT))
