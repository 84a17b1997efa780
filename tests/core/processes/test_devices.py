from __future__ import annotations

import pytest
import torch

from dpce_cli.core.errors import ConfigError
from dpce_cli.core.processes.devices import choose_device


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


def test_the_cpu_can_be_chosen() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "CPU", "meta", "cpu\n"])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_device(name)
    assert str(refused.value) == f"--device {name}: there is no such device; choose auto, cpu, cuda or cuda:N"


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--device cuda:99: not available \(.+\); choose cpu or auto$"):
        choose_device("cuda:99")


@pytest.mark.gpu
def test_a_gpu_that_is_there_can_be_chosen() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert choose_device("cuda:0") == torch.device("cuda:0")
