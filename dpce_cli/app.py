"""The command line: registration of the subcommands, and how errors are told."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dpce_cli import __version__
from dpce_cli.commands.build_word2vec import build_word2vec
from dpce_cli.commands.encode import encode
from dpce_cli.commands.eval import evaluate
from dpce_cli.commands.export import export
from dpce_cli.commands.extract_features import extract_features
from dpce_cli.commands.galleries import galleries
from dpce_cli.commands.import_matconvnet import import_matconvnet
from dpce_cli.commands.index import index
from dpce_cli.commands.plan import plan
from dpce_cli.commands.prepare_vocab import prepare_vocab
from dpce_cli.commands.retrieve import retrieve
from dpce_cli.commands.train_stage1 import train_stage1
from dpce_cli.commands.train_stage2 import train_stage2
from dpce_cli.core.errors import DpceError
from dpce_cli.core.processes.environment import is_main_process
from dpce_cli.core.processes.interruption import Interrupted, stop_signals_interrupt
from dpce_cli.core.progress import visible
from dpce_cli.launch import report_failure


class _Command(TyperCommand):
    """A command whose options take paths with `~`, also where no shell has replaced it, as in DPCE_WORKSPACE."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if isinstance(value, str | Path) and str(value).startswith("~") and name != "query":
                ctx.params[name] = type(value)(os.path.expanduser(value))
        return rest


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # Typer would exit without a word
            raise Interrupted("run the same command again to continue") from None


app = typer.Typer(
    name="dpce",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in (
    ("prepare-vocab", prepare_vocab),
    ("build-word2vec", build_word2vec),
    ("train-stage1", train_stage1),
    ("train-stage2", train_stage2),
    ("import-matconvnet", import_matconvnet),
    ("plan", plan),
    ("extract-features", extract_features),
    ("eval", evaluate),
    ("retrieve", retrieve),
    ("export", export),
    ("encode", encode),
    ("index", index),
    ("galleries", galleries),
):
    app.command(name, cls=_Command)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dpce {__version__}")
        raise typer.Exit


@app.callback()
def dpce(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Put photos and sentences into one embedding space, and search it both ways.

    The commands work on a workspace, a folder in which each finds what the previous ones made:

    prepare-vocab -> build-word2vec -> train-stage1 -> train-stage2 -> extract-features -> eval, retrieve, export
    """


def main() -> None:
    """Run the command line; a user's mistake ends in one line on stderr and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows no other letters gets them as escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        with stop_signals_interrupt():
            try:
                app(prog_name="dpce")
            finally:
                if sys.stdout is not None:  # it is where a shell has closed it
                    sys.stdout.flush()
    except DpceError as error:
        if not report_failure(error) and is_main_process():
            typer.echo(f"Error: {visible(str(error))}", err=True)
        sys.exit(1)
    except Interrupted as stopped:
        if is_main_process():
            typer.echo(f"Interrupted: {stopped}", err=True)
        sys.exit(stopped.exit_code)
    except OSError as error:
        if error.filename is not None:
            where = visible(str(error.filename))
            typer.echo(f"Error: {where}: {error.strerror}; check the path and its permissions", err=True)
        elif error.errno in (errno.EPIPE, errno.ENOSPC, errno.EBADF):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to write would fail again at the end
            if error.errno != errno.EPIPE:
                typer.echo(f"Error: the results cannot be written ({error.strerror})", err=True)
        else:
            raise
        sys.exit(1)
