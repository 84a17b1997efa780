from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test, so that no process waits for it at the end."""
    items.sort(key=lambda item: "test_quickstart" not in item.nodeid)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos, captions, weights and vectors beside the checkout; the test is skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The networks of the tests are too small for more, and with one thread, sums have always the same order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> None:
    """Undo what a shell does to background jobs: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
