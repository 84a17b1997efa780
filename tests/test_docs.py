from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from PIL import Image

from dpce_cli import __version__
from dpce_cli.app import app
from dpce_cli.core.data.readers.folder import read_folder
from dpce_cli.core.presets import PRESETS, build_preset
from tests.command_line import check_arguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = "\n".join(
    [README, *((ROOT / "examples" / f"{name}.md").read_text(encoding="utf-8") for name in ("data_sets", "training"))]
)
SCRIPTS = sorted([*ROOT.glob("examples/*.sh"), ROOT / ".ci" / "run"])
DPCE = typer.main.get_command(app)
COMMANDS = DPCE.commands  # type: ignore[attr-defined]


def blocks(language: str) -> list[str]:
    """The contents of code blocks in a language, in README and the guides beside it."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDES, flags=re.DOTALL | re.MULTILINE)


def command_lines(text: str) -> list[str]:
    """What follows `dpce` wherever a line begins with it, perhaps with the folder where it is installed."""
    return re.findall(r"^ *(?:\.venv/bin/)?dpce (.+)$", text, flags=re.MULTILINE)


def options_of(name: str) -> set[str]:
    """The options of a command as they are written on a command line."""
    return {"--help", *(text for option in COMMANDS[name].params for text in (*option.opts, *option.secondary_opts))}


def unknown_options(line: str) -> set[str]:
    """Options on a line of text that neither dpce nor a command on that line has; without a command: that none has."""
    named = [name for name in COMMANDS if re.search(rf"(?<![\w-]){name}(?![\w-])", line)] if "dpce" in line else []
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", line))
    own = {text for option in DPCE.params for text in option.opts}
    return options - own.union(*map(options_of, named or COMMANDS))


def example(name: str) -> str:
    """What follows `dpce` in the example of a command's help."""
    found = re.search(r"^ *Example: dpce (.+)$", COMMANDS[name].help, flags=re.MULTILINE)
    assert found, f"dpce {name} has no example"
    return found[1]


DOCUMENTED = sorted(
    {
        *(line for block in blocks("sh") for line in command_lines(block)),
        *(line for script in SCRIPTS for line in command_lines(script.read_text(encoding="utf-8"))),
        *(example(name) for name in COMMANDS),
    }
)


def test_the_readme_is_at_most_about_three_hundred_lines_long() -> None:
    assert len(README.splitlines()) <= 315


def test_the_readmes_table_has_every_command_and_no_other() -> None:
    assert re.findall(r"^\| `dpce ([^`]+)` \|", README, flags=re.MULTILINE) == list(COMMANDS)


def test_every_command_that_the_guides_name_exists() -> None:
    named = re.findall(r"`(?:\.venv/bin/)?dpce ([a-z0-9-]+)", GUIDES)
    assert named
    assert set(named) <= set(COMMANDS)


def test_every_option_that_the_guides_name_exists_for_the_command_on_that_line() -> None:
    foreign = re.compile(r"^(find|torchrun) ")  # other programs with options of their own
    lines = [line for line in GUIDES.splitlines() if not foreign.match(line)]
    assert sum("--" in line for line in lines) > 20
    assert {line: unknown for line in lines if (unknown := unknown_options(line))} == {}


def test_an_option_of_another_command_is_unknown() -> None:
    assert unknown_options("`dpce eval --json` prints JSON; `--sheet` too") == {"--sheet"}
    assert unknown_options("Draw it with `--sheet` or `--shet`") == {"--shet"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_in_a_commands_help_is_one_of_that_command(name: str) -> None:
    assert example(name).split()[0] == name


@pytest.mark.parametrize("line", DOCUMENTED)
def test_every_documented_command_line_parses(line: str) -> None:
    check_arguments(line)


@pytest.mark.parametrize("line", [line for line in DOCUMENTED if "--set" in line])
def test_every_documented_setting_exists(line: str) -> None:
    words = shlex.split(line)
    build_preset("flickr8k").with_settings([words[i + 1] for i, word in enumerate(words) if word == "--set"])


def test_the_guides_name_the_presets_that_exist() -> None:
    assert set(re.findall(r"preset `([^`]+)`", GUIDES)) <= set(PRESETS)
    assert set(re.findall(r"`(paper-[a-z0-9-]+)`", GUIDES)) <= set(PRESETS)
    assert all(f"`{name}`" in GUIDES for name in PRESETS)


def test_the_generated_parts_of_the_readme_are_in_sync() -> None:
    command = [sys.executable, "-m", "cogapp", "--check", "README.md"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"run `cog -r README.md`: {result.stdout}{result.stderr}"


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_every_link_of_the_readme_leads_to_a_file(target: str) -> None:
    assert (ROOT / target).is_file()


def test_the_captions_files_in_the_guides_can_be_read(tmp_path: Path) -> None:
    (table,), (objects,), (lines,) = blocks("csv"), blocks("json"), blocks("text")[:1]
    for name in ("beach/dog.jpg", "harbour.jpg", "market.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)

    def captions() -> dict[str, tuple[str, ...]]:
        read = read_folder(tmp_path, captions=None, val_fraction=0.1, test_fraction=0.1, seed=0)
        return {image.image_id: image.captions for image in read.images}

    dog = ("a brown dog runs along the water", "a dog, wet, on a beach")
    (tmp_path / "captions.csv").write_text(table, encoding="utf-8")
    assert captions()["beach/dog.jpg"] == dog
    assert len(captions()) == 3
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "captions.jsonl").write_text(objects, encoding="utf-8")
    assert captions() == {"beach/dog.jpg": dog, "harbour.jpg": ("two boats lie in the harbour",)}
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "harbour.txt").write_text(lines, encoding="utf-8")
    assert captions() == {"harbour.jpg": tuple(lines.splitlines())}


def test_the_newest_version_in_the_changelog_is_the_packages() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == __version__


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_scripts_are_well_formed_and_can_be_run(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    is_sourced = not script.read_text(encoding="utf-8").startswith("#!")
    assert os.access(script, os.X_OK) != is_sourced


@pytest.mark.parametrize("script", sorted(ROOT.glob("examples/benchmarks/*.py")), ids=lambda script: script.name)
def test_benchmarks_are_executable_and_what_they_share_is_not(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK) == text.startswith("#!") == ("def main()" in text)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "DIR is the folder of the official Flickr8k files"),
        (["no folder"], "DIR is the folder of the official Flickr8k files, not 'no folder'"),
        ([str(ROOT), "no setting"], "KEY=VALUE is a setting such as seed=1, not 'no setting'"),
    ],
)
def test_the_flickr8k_script_explains_itself(arguments: list[str], hint: str) -> None:
    script = ROOT / "examples" / "flickr8k.sh"
    result = subprocess.run([script, *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    usage, explanation = result.stderr.splitlines()
    assert usage.startswith("usage: ")
    assert explanation == hint
