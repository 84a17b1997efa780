from __future__ import annotations

import pytest
import torch
from torch import nn

from dpce_cli.core.errors import ConfigError, DataError, ProcessGone, TrainingError
from dpce_cli.core.processes import environment
from dpce_cli.core.processes.collectives import (
    any_process,
    gather_objects,
    gather_rows,
    gather_to_first,
    lengths,
    process_group,
    rank,
    share,
    shares,
    world_size,
)
from dpce_cli.core.processes.interruption import Interrupted
from dpce_cli.core.processes.sync_batch_norm import synchronise_batch_norms
from dpce_cli.core.seeding import generator_for
from tests.core.gloo import in_processes


def test_a_single_process_has_everything_and_waits_for_nobody() -> None:
    rows = torch.rand(5, 2, requires_grad=True)
    assert (rank(), world_size(), shares(5), lengths(5)) == (0, 1, [slice(0, 5)], (5,))
    assert gather_rows(rows, (5,)) is rows
    assert gather_objects("alone") == ["alone"]
    assert gather_to_first(rows, 5).equal(rows.detach())
    assert any_process(True, False) == [True, False]


def _exchange() -> None:
    assert world_size() == 3
    assert [part.stop - part.start for part in shares(11)] == list(lengths(11)) == [3, 4, 4]
    assert gather_objects(rank()) == [0, 1, 2]
    assert any_process(rank() == 2, False, rank() == 0) == [True, False, True]
    rows = torch.arange(22.0).view(11, 2)
    gathered = gather_to_first(rows[share(11)], 11)
    assert gathered.equal(rows if rank() == 0 else rows[share(11)])
    _differentiate()
    _normalise()


def _differentiate() -> None:
    """The processes have different numbers of rows."""
    counts = (1, 0, 4)
    whole = torch.rand(5, 2, generator=generator_for("rows"), dtype=torch.float64)
    own = whole[sum(counts[: rank()]) :][: counts[rank()]].clone().requires_grad_()
    gathered = gather_rows(own, counts)
    assert gathered.detach().equal(whole)
    gathered.square().sum().backward()
    assert own.grad is not None
    assert own.grad.equal(3 * 2 * own.detach())


def _normalise() -> None:
    """Unequal shares of 11 rows, in training and in testing."""
    for shape in ((11, 4), (11, 4, 3), (11, 4, 3, 2)):
        one: nn.Module = nn.BatchNorm2d(4) if len(shape) == 4 else nn.BatchNorm1d(4)
        other: nn.Module = nn.BatchNorm2d(4) if len(shape) == 4 else nn.BatchNorm1d(4)
        one, other = one.double(), synchronise_batch_norms(other.double(), torch.device("cpu"))
        weights = torch.rand(shape, generator=generator_for("weights"), dtype=torch.float64)
        for step in range(2):
            given = torch.randn(shape, generator=generator_for(step), dtype=torch.float64).requires_grad_()
            own = given.detach()[share(11)].clone().requires_grad_()
            expected, got = one(given), other(own)
            torch.testing.assert_close(got, expected[share(11)], atol=1e-12, rtol=1e-12)
            (weights * expected).sum().backward()
            (weights[share(11)] * got).sum().backward()
            assert given.grad is not None
            torch.testing.assert_close(own.grad, given.grad[share(11)], atol=1e-12, rtol=1e-12)
        assert one.state_dict().keys() == other.state_dict().keys()
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(other.eval()(given), one.eval()(given), atol=1e-12, rtol=1e-12)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes this process the fourth of a job; lists what happens to the process group."""
    told = list[str]()
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "3")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    monkeypatch.setattr(environment, "_takes_part", False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: told.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: told.append("destroyed"))
    return told


def fail(error: BaseException, device: str = "cpu") -> None:
    with process_group(device):
        raise error


def test_a_process_that_fails_alone_does_not_wait_for_the_others(group: list[str]) -> None:
    with process_group("cpu"):
        pass
    assert group == ["gloo", "destroyed"]
    with pytest.raises(Interrupted):  # as all of them are, after the same step
        fail(Interrupted())
    assert group == ["gloo", "destroyed"] * 2
    for error in (DataError("a photo"), RuntimeError("a bug"), KeyboardInterrupt()):
        group.clear()
        with pytest.raises(type(error)):
            fail(error)
        assert group == ["gloo"]


def test_the_end_of_another_process_is_an_error_of_the_user(group: list[str]) -> None:
    with pytest.raises(ProcessGone, match=r"another process has ended or never started \(more\); run the same"):
        fail(RuntimeError("[gloo/pair.cc] closed\nmore"))


def test_each_process_uses_memory_of_its_own_gpu_only(group: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    used, current = list[str](), list[str]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "empty", lambda size, device: used.append(device))
    for name in ("auto", "cuda"):
        with process_group(name) as device:
            assert device == torch.device("cuda:3")
    assert used == ["cuda:3"] * 2
    assert current == ["cuda:3"] * 2
    assert set(group) == {"cpu:gloo,cuda:nccl", "destroyed"}
    with pytest.raises(ConfigError, match=r"--device cuda:1: each of several processes has its own GPU"):
        fail(AssertionError(), "cuda:1")


def test_a_gpu_whose_memory_is_full_is_named_with_advice() -> None:
    with pytest.raises(
        TrainingError, match=r"has too little memory \(CUDA out of memory\. Tried 2 GiB\); .*batch_size"
    ):
        fail(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"))


@pytest.mark.slow
def test_three_processes_gather_their_rows_with_gradients() -> None:
    in_processes(3, _exchange)
