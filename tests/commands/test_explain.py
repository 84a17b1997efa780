from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import dpce, succeed

SENTENCE = "a woman in blue"


@pytest.fixture
def photo(finished_workspace: Path) -> Path:
    return Workspace(finished_workspace).load_dataset().root / "test" / "000000.png"


def test_the_words_their_shares_and_the_strongest_part_are_printed(finished_workspace: Path, photo: Path) -> None:
    outcome = succeed("explain", photo, f"{SENTENCE} zebra", workspace=finished_workspace)
    lines = outcome.stdout.splitlines()
    assert lines[0] == f"{photo}: {SENTENCE} zebra"
    assert lines[1].split() == ["word", "share"]
    assert [line.split()[0] for line in lines[2:7]] == ["a", "woman", "in", "blue", "zebra"]
    assert all(re.fullmatch(r"\w+ +[+-]\d\.\d{3}", line) for line in lines[2:6])
    assert lines[6] == "zebra  ignored: unknown"
    assert re.fullmatch(r"similarity -?\d\.\d{3}; a word's share is how much it falls without this word", lines[7])
    assert re.fullmatch(r"strongest part of the photo: [a-z ]+ \(row \d+ of 12, column \d+ of 12\)", lines[8])
    assert outcome.stderr == ""


def test_an_exported_model_explains_in_json(finished_workspace: Path, photo: Path, tmp_path: Path) -> None:
    succeed("export", tmp_path / "model", workspace=finished_workspace)
    own, shared = (
        json.loads(succeed("explain", photo, SENTENCE, "--json", *where).stdout)
        for where in (("--workspace", finished_workspace), ("--model", tmp_path / "model"))
    )
    assert own == shared
    assert own["photo"] == str(photo)
    assert own["sentence"] == SENTENCE
    assert [word["word"] for word in own["words"]] == SENTENCE.split()
    assert all(isinstance(word["share"], float) for word in own["words"])
    assert own["heat"]["part"] == [0, 0, 1, 1]
    assert [len(row) for row in own["heat"]["values"]] == [12] * 12


def test_a_sheet_is_drawn(finished_workspace: Path, photo: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "why.png"
    outcome = succeed("explain", photo, SENTENCE, "--sheet", sheet, workspace=finished_workspace)
    assert outcome.stderr == f"sheet: {sheet}\n"
    with Image.open(sheet) as drawn:
        assert drawn.format == "PNG"


def test_what_cannot_be_explained_is_refused_in_one_line(finished_workspace: Path, photo: Path, tmp_path: Path) -> None:
    missing = dpce("explain", tmp_path / "missing.png", SENTENCE, workspace=finished_workspace).error
    assert missing.startswith(f"Error: {tmp_path}/missing.png: cannot be read (No such file or directory)")
    assert "knows none of its words" in dpce("explain", photo, "zebra", workspace=finished_workspace).error
    assert dpce("explain", photo, SENTENCE, workspace=tmp_path / "nowhere").error
