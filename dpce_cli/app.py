"""The command line: registration of the subcommands, and how errors are told."""

from __future__ import annotations

import errno
import inspect
import io
import os
import re
import select
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dpce_cli import __version__
from dpce_cli.commands.build_word2vec import build_word2vec
from dpce_cli.commands.encode import encode
from dpce_cli.commands.eval import evaluate
from dpce_cli.commands.explain import explain
from dpce_cli.commands.export import export
from dpce_cli.commands.extract_features import extract_features
from dpce_cli.commands.galleries import galleries
from dpce_cli.commands.import_matconvnet import import_matconvnet
from dpce_cli.commands.index import index
from dpce_cli.commands.plan import plan
from dpce_cli.commands.prepare_vocab import prepare_vocab
from dpce_cli.commands.retrieve import retrieve
from dpce_cli.commands.serve import serve
from dpce_cli.commands.teach import teach
from dpce_cli.commands.train_stage1 import train_stage1
from dpce_cli.commands.train_stage2 import train_stage2
from dpce_cli.core.errors import DpceError, advice_on
from dpce_cli.core.processes.environment import is_main_process
from dpce_cli.core.processes.interruption import Interrupted, stop_signals_interrupt
from dpce_cli.core.progress import visible
from dpce_cli.launch import report_failure


class _Command(TyperCommand):
    """A command whose options take paths with `~`, also where no shell has replaced it, as in DPCE_WORKSPACE."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if name not in ("query", "sentence"):
                ctx.params[name] = _expanded(value, of_setting=name == "settings")
        return rest


def _expanded(value: Any, *, of_setting: bool) -> Any:
    """The value of an option, in which the home folder stands for `~` at the beginning, or after KEY=."""
    if isinstance(value, list | tuple):
        return [_expanded(item, of_setting=of_setting) for item in value]
    if isinstance(value, str | Path):
        key, equals, path = str(value).partition("=") if of_setting else ("", "", str(value))
        if path.startswith("~"):
            return type(value)(key + equals + os.path.expanduser(path))
    return value


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # Typer would exit without a word
            raise Interrupted("run the same command again to continue") from None
        except BrokenPipeError as error:
            if any(map(_has_no_reader, (1, 2))):
                raise  # nobody reads the results any more: Typer exits
            raise DpceError(f"{error.strerror}: {advice_on(error)}; run the command again") from error


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
    ("explain", explain),
    ("export", export),
    ("encode", encode),
    ("index", index),
    ("galleries", galleries),
    ("serve", serve),
    ("teach", teach),
):
    # One line per paragraph: Typer keeps the line breaks of a docstring, whatever the terminal's width.
    paragraphs = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.__doc__ or ""))
    app.command(name, cls=_Command, help=paragraphs)(command)


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
    code = _run()
    try:
        if sys.stdout is not None:  # it is where a shell has closed it
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to write would fail again at the end
        if error.errno != errno.EPIPE:
            typer.echo(f"Error: the results cannot be written ({error.strerror}); {advice_on(error)}", err=True)
        code = code or 1
    sys.exit(code)


def _run() -> int | str | None:
    """Run the command that the arguments name; its exit code, as `sys.exit` takes it."""
    try:
        with stop_signals_interrupt():
            app(prog_name="dpce")
    except SystemExit as ended:
        return ended.code
    except DpceError as error:
        if not report_failure(error) and is_main_process():
            typer.echo(f"Error: {visible(str(error))}", err=True)
    except Interrupted as stopped:
        if is_main_process():
            typer.echo(f"Interrupted: {visible(str(stopped))}", err=True)
        return stopped.exit_code
    except OSError as error:
        if error.errno is None:
            raise  # not the operating system's
        where = "" if error.filename is None else f"{error.filename}: "
        typer.echo(f"Error: {visible(f'{where}{error.strerror}; {advice_on(error)}, then run again')}", err=True)
    return 1


def _has_no_reader(descriptor: int) -> bool:
    """Whether this is the end of a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
