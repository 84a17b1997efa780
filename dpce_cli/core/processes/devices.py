"""Choose the device to compute on."""

from __future__ import annotations

import re

import torch

from dpce_cli.core.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device called `name`, a CPU or a CUDA GPU; "auto" is a CUDA GPU if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"--device {name}: there is no such device; choose auto, cpu, cuda or cuda:N")
    try:
        if ":" in name:
            torch.cuda.set_device(name)  # otherwise, calls without a device open a context on the first GPU
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: not available ({reason}); choose cpu or auto") from error
    return torch.device(name)
