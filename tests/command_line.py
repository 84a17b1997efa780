"""Call the command line in this process, with a network so small that a stage takes about a second.

`python -m tests.command_line` is `dpce` with that network.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import typer.main

from dpce_cli.app import app, main
from dpce_cli.core.models import backbones
from dpce_cli.core.workspace.checkpoint import Checkpoint, load_checkpoint
from tests.core.tiny import TinyCNN

SETTINGS = (
    "image.resize=32",
    "image.crop=32",
    "model.embedding_dim=16",
    "model.text_width=0.05",
    "model.word_dim=12",
    *(f"{stage}.{setting}" for stage in ("stage1", "stage2") for setting in ("epochs=1", "batch_size=4")),
)
TINY = tuple(argument for setting in SETTINGS for argument in ("--set", setting))
SCENES = ("prepare-vocab", "scenes", "--train-images", "12", "--test-images", "6", *TINY)


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line about a user's mistake. Checks that there is no result, and that commands in the line exist."""
        assert self.code == 1, self
        assert self.stdout == "", self.stdout
        lines = self.stderr.splitlines()
        assert [line for line in lines if line.startswith("Error: ")] == lines[-1:], self.stderr
        assert "Traceback" not in self.stderr
        for advised in re.findall(r"['`]dpce ([^'`]+)['`]", lines[-1]):
            check_arguments(advised)
        return lines[-1]

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("Warning: ")]


def dpce(*arguments: str | Path, workspace: Path | None = None) -> Outcome:
    """Run `dpce` with these arguments until it exits."""
    argv = ["dpce", *map(str, arguments), *(["--workspace", str(workspace)] if workspace else [])]
    code: object = 0
    with (
        patch.object(sys, "argv", argv),
        redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)) as stdout,
        redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            _main_on_tiny_cnn()
        except SystemExit as stop:
            code = stop.code or 0
    assert isinstance(code, int)
    printed = stdout.buffer
    assert isinstance(printed, io.BytesIO)
    return Outcome(code, os.fsdecode(printed.getvalue()), stderr.getvalue())


def succeed(*arguments: str | Path, workspace: Path | None = None) -> Outcome:
    """Run `dpce` and check that it exits with 0."""
    outcome = dpce(*arguments, workspace=workspace)
    assert outcome.code == 0, outcome
    return outcome


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that was written by `dpce` with `TinyCNN`."""
    with tiny_resnet10():
        return load_checkpoint(path, remedy="dpce train-stage1")


def check_arguments(line: str) -> None:
    """Parse what follows `dpce` on a command line, and run nothing."""
    name, *arguments = shlex.split(line, comments=True)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands[name].make_context(name, arguments)


def _main_on_tiny_cnn() -> None:
    """`dpce` with `TinyCNN` in the place of ResNet-10."""
    with tiny_resnet10():
        main()


def tiny_resnet10() -> AbstractContextManager[object]:
    return patch.dict(backbones.VARIANTS, {"resnet10": TinyCNN})


if __name__ == "__main__":
    _main_on_tiny_cnn()
