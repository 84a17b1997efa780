"""Where to compute."""

from __future__ import annotations

import torch

from dpce_cli.core.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a CUDA GPU if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: not available ({reason}); choose cpu or auto") from error
    return device
