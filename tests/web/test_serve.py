from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.core.tiny import tiny_config
from tests.web.conftest import searches_of, untrained


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_the_page_until_it_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    searches_of(untrained(tiny_config(None, "image.backbone=resnet10")), tmp_path)
    command = ["serve", "--port", "0", "--workspace", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "dpce_cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address + "state", timeout=60) as answer:
            assert answer.status == HTTPStatus.OK
            assert '"photos"' in answer.read().decode()
        process.send_signal(number)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
