from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from dpce_cli import __version__
from dpce_cli.core.processes.interruption import Interrupted
from dpce_cli.core.workspace import preparation
from tests.command_line import SCENES, check_arguments, dpce, succeed

COMMANDS = [
    "prepare-vocab",
    "build-word2vec",
    "train-stage1",
    "train-stage2",
    "import-matconvnet",
    "plan",
    "extract-features",
    "eval",
    "retrieve",
    "explain",
    "export",
    "encode",
    "index",
    "galleries",
    "serve",
    "teach",
]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=120
    )


def _words(help_text: str) -> str:
    """The words of a help screen, without its boxes and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", help_text).split())


def test_the_module_prints_the_version() -> None:
    ended = _run("-m", "dpce_cli", "--version")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"dpce {__version__}\n", "")


def test_the_module_reports_a_mistake_in_one_line(tmp_path: Path) -> None:
    ended = _run("-m", "dpce_cli", "eval", "--workspace", str(tmp_path))

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"Error: {tmp_path}: no data set is prepared here; run 'dpce prepare-vocab scenes' (or another data set), "
        "or name the right folder with --workspace\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["retrieve", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import json, sys\n"
        "from dpce_cli.app import main\n"
        f"sys.argv = ['dpce', *{arguments}]\n"
        "try:\n    main()\n"
        "finally:\n    print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    ended = _run("-c", program)

    assert ended.returncode == 0
    imported = {name.partition(".")[0] for name in json.loads(ended.stdout.splitlines()[-1])}
    assert imported & {"torch", "torchvision", "h5py", "gensim", "nltk", "numpy", "matplotlib", "PIL"} == set()


def test_help_lists_the_commands_in_the_order_of_their_use() -> None:
    outcome = succeed("--help")

    assert re.findall(r"^│ ([a-z0-9-]+) ", outcome.stdout.partition("Commands")[2], re.MULTILINE) == COMMANDS
    assert outcome.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(command: str) -> None:
    outcome = succeed(command, "--help")

    text = _words(outcome.stdout)
    assert text.startswith(f"Usage: dpce {command} ")
    examples = re.findall(r"Example: dpce ([a-z0-9-]+ .*?) (?=Example:|Arguments |Options )", text)
    assert examples, text
    for example in examples:
        assert example.startswith(f"{command} ")
        check_arguments(example)
    assert succeed(command, "-h").stdout == outcome.stdout


def test_a_shell_completes_commands_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DPCE_COMPLETE", "complete_bash")
    for words, completed in (("dpce expo", ["export"]), ("dpce encode --qu", ["--query"])):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert dpce().stdout.split() == completed


@pytest.mark.parametrize("arguments", [("nosuch",), ("--nosuch",), ("eval", "--split")])
def test_a_wrong_command_line_exits_with_2(arguments: tuple[str, ...]) -> None:
    outcome = dpce(*arguments)

    assert (outcome.code, outcome.stdout) == (2, "")
    assert "╭─ Error ─" in outcome.stderr


def test_no_command_shows_the_help() -> None:
    outcome = dpce()

    assert outcome.code == 2
    assert _words(outcome.stdout + outcome.stderr).startswith("Usage: dpce [OPTIONS] COMMAND")


def test_the_workspace_is_an_option_a_variable_or_a_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DPCE_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    succeed(*SCENES)
    monkeypatch.setenv("DPCE_WORKSPACE", str(tmp_path / "variable"))
    succeed(*SCENES)
    succeed(*SCENES, workspace=tmp_path / "option")

    assert sorted(os.listdir(tmp_path)) == ["dpce-workspace", "option", "variable"]
    for name in ("dpce-workspace", "option", "variable"):
        assert (tmp_path / name / "current").read_text() == "scenes\n"


def test_ctrl_c_at_any_moment_ends_in_one_line_and_130(tmp_path: Path) -> None:
    with patch.object(preparation, "tokenize", side_effect=KeyboardInterrupt):
        outcome = dpce(*SCENES, workspace=tmp_path)

    assert outcome.code == 130
    assert outcome.stdout == ""
    assert outcome.stderr.splitlines()[-1] == "Interrupted: run the same command again to continue"
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            BrokenPipeError(errno.EPIPE, "Broken pipe"),
            "Broken pipe: another process of this command ended early; run the command again",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "Too many open files; use fewer --workers, or allow more open files with 'ulimit -n', then run again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a\nb"),
            "a\\nb: Permission denied; change the permissions or choose another place, then run again",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; free space or choose another place, then run again",
        ),
    ],
)
def test_an_error_of_the_system_is_reported_with_advice(tmp_path: Path, error: OSError, line: str) -> None:
    with patch.object(preparation, "tokenize", side_effect=error):
        assert dpce(*SCENES, workspace=tmp_path).error == f"Error: {line}"


def test_what_an_interruption_says_cannot_change_the_terminal(tmp_path: Path) -> None:
    with patch.object(preparation, "tokenize", side_effect=Interrupted("saved in a\x1b[31m\nb")):
        outcome = dpce(*SCENES, workspace=tmp_path)
    assert outcome.stderr.splitlines()[-1] == "Interrupted: saved in a\\x1b[31m\\nb"


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    with (
        patch.object(preparation, "tokenize", side_effect=ZeroDivisionError("a bug")),
        pytest.raises(ZeroDivisionError, match="a bug"),
    ):
        dpce(*SCENES, workspace=tmp_path)


def run(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PYTHONPATH": str(Path(__file__).parents[1])}
    shell = f"set -o pipefail; {command.replace('dpce', f'{sys.executable} -m dpce_cli')}"
    return subprocess.run(
        ["bash", "-c", shell], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("command", ["dpce --help >&-", "dpce --help | true", "dpce --help >/dev/full"])
def test_a_closed_output_pipe_ends_without_a_traceback(tmp_path: Path, command: str) -> None:
    outcome = run(command, tmp_path)
    assert "Traceback" not in outcome.stderr
    assert "Exception ignored" not in outcome.stderr


def test_an_ascii_terminal_is_no_reason_for_a_traceback(tmp_path: Path) -> None:
    outcome = run("dpce eval --workspace Ordner-ä", tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("Error: Ordner-")
    assert "Traceback" not in outcome.stderr


def test_a_home_folder_is_understood_in_options_and_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dpce("eval", "--workspace", "~/one").error.startswith(f"Error: {tmp_path}/one: no data set")
    monkeypatch.setenv("DPCE_WORKSPACE", "~/two")
    assert dpce("eval").error.startswith(f"Error: {tmp_path}/two: no data set")
    succeed(*SCENES, "--set", "image.backbone_weights=~/weights=1.pt")
    about = json.loads((tmp_path / "two" / "scenes" / "dataset.json").read_text())
    assert about["config"]["image"]["backbone_weights"] == f"{tmp_path}/weights=1.pt"


def test_control_characters_of_names_reach_no_terminal(tmp_path: Path) -> None:
    error = dpce("eval", workspace=tmp_path / "a\x1b]0;title\x07\nb").error
    assert error.startswith(f"Error: {tmp_path}/a\\x1b]0;title\\x07\\nb: no data set is prepared here")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    assert str(closed) in dpce("eval", workspace=closed / "workspace").error
