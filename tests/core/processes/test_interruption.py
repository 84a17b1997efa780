from __future__ import annotations

import signal
import threading

import pytest

from dpce_cli.core.processes.interruption import StopRequest, interrupts_held_back


def interrupted(times: int, reached: list[str]) -> None:
    with interrupts_held_back():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        reached.append("end")


def test_an_interrupt_is_delivered_at_the_end_of_the_block() -> None:
    reached = list[str]()
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, reached)
    assert reached == ["end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_is_delivered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = list[str]()
    monkeypatch.setattr("dpce_cli.core.processes.interruption._SAME_REQUEST_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt):
        interrupted(2, reached)
    assert reached == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_in_a_block_that_fails_is_not_lost() -> None:
    def fail() -> None:
        with interrupts_held_back():
            signal.raise_signal(signal.SIGINT)
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        fail()


def test_a_delayed_interrupt_reaches_the_listener() -> None:
    stop = StopRequest()
    with stop.listening():
        with interrupts_held_back():
            signal.raise_signal(signal.SIGINT)
            assert not stop.made
        assert stop.made


def test_other_threads_leave_signals_alone() -> None:
    entered = []

    def work() -> None:
        with interrupts_held_back():
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [signal.default_int_handler]
