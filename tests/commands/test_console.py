from __future__ import annotations

import io
import json
import re
import sys

import pytest

from dpce_cli.commands.console import ConsoleReporter, print_json, print_table


def test_a_log_reports_the_end_only_once(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter().track("reading", 4) as advance:
        for count in (0, 1, 3, 0, 0):
            advance(count)

    assert capsys.readouterr().err == "reading | 4/4 | eta 0s\n"


def test_a_log_has_one_line_per_interval_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 11.0, 12.0, 30.0, 31.0])
    monkeypatch.setattr("dpce_cli.commands.console.time.monotonic", lambda: next(clock))
    with ConsoleReporter().track("reading", 100, 10) as advance:
        for count in (10, 10, 10, 10, 50):
            advance(count)

    assert capsys.readouterr().err.splitlines() == [
        "reading | 30/100 | eta 38s",
        "reading | 50/100 | eta 38s",
        "reading | 100/100 | eta 0s",
    ]


def test_values_are_logged_whenever_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter().track("stage 1", 100) as advance:
        advance(1, {"step": "1/100", "loss": "2.5"})
        advance(1)

    assert capsys.readouterr().err == "stage 1 | step 1/100 | loss 2.5\n"


def test_notes_and_warnings_are_one_line_each_whatever_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    reporter.note("a [red]note[/red] " + "x" * 300)
    reporter.warn("[/] odd")

    assert capsys.readouterr().err == "a [red]note[/red] " + "x" * 300 + "\nWarning: [/] odd\n"


def test_a_terminal_sees_a_bar_with_the_newest_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    reporter = ConsoleReporter()
    with reporter.track("stage 1", 4, done=1) as advance:
        advance(2, {"loss": "2.5"})
        reporter.warn("a photo is missing")
    reporter.note("done")

    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "stage 1" in text
    assert "3/4 loss 2.5" in text
    assert "Warning: a photo is missing" in text
    assert text.rstrip().endswith("done")


def test_a_table_in_a_pipe_keeps_title_and_rows_on_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    caption = " ".join(["[word]"] * 100)
    print_table("a title of some [length]", ("rank", "score", "caption"), [("1", "0.5", caption), ("2", "-0.25", "")])

    assert capsys.readouterr().out.splitlines() == [
        "a title of some [length]",
        "rank  score  caption",
        f"1       0.5  {caption}",
        "2     -0.25",
    ]


def test_a_row_in_a_pipe_stays_on_one_line_however_long_and_wide_its_letters_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    caption = "走る犬" * 5_000
    print_table("title", ("rank", "path", "caption"), [("1", "犬\n.jpg", caption), ("2", "a.jpg", "b")], text_columns=2)

    assert capsys.readouterr().out.splitlines() == [
        "title",
        "rank  path      caption",
        f"1     犬\\n.jpg  {caption}",
        "2     a.jpg     b",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_is_exact_and_holds_no_letter_that_a_terminal_obeys(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    value = {"path": "\x1b]0;\x9b31m\u202e \udce9 é 犬 🐶 \\n"}
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    print_json(value)

    assert isinstance(stdout.buffer, io.BytesIO)
    text = stdout.buffer.getvalue().decode(encoding)
    assert json.loads(text) == value
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert ("犬" in text) == (encoding == "utf-8")
