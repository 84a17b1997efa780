from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos, captions, weights and vectors that lies beside the checkout where there is one."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The networks of the tests are too small for more, and sums keep their order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> None:
    """A shell has its background jobs, and what they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
