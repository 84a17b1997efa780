"""Where this process stands among those of one job, as the launcher's environment variables say."""

from __future__ import annotations

import os

LAUNCHER = "DPCE_LAUNCHER"
"""Environment variable with the process id of the `dpce` command that started this process."""


def is_launched() -> bool:
    """Whether torchrun, or `dpce_cli.launch`, started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Whether this process writes files and reports."""
    return not is_launched() or os.environ["RANK"] == "0"


def launcher_is_gone() -> bool:
    """Whether the `dpce` command that started this process has ended, so that nothing watches over it."""
    return LAUNCHER in os.environ and int(os.environ[LAUNCHER]) != os.getppid()
