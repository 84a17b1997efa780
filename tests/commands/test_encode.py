from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import Outcome, dpce, succeed


@pytest.fixture(scope="module")
def model(finished_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    succeed("export", folder, workspace=finished_workspace)
    return folder


@pytest.fixture
def photo(finished_workspace: Path) -> Path:
    return Workspace(finished_workspace).load_dataset().root / "test" / "000000.png"


def _encode(model: Path, *arguments: str | Path) -> Outcome:
    return dpce("encode", "--model", model, *arguments, workspace=model / "nowhere")


def _lines(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.code == 0, outcome
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def test_sentences_become_one_line_of_json_each(model: Path) -> None:
    lines = _lines(_encode(model, "--query", "a man", "--query", "a blonde woman", "--query", "a man"))

    assert [line["query"] for line in lines] == ["a man", "a blonde woman", "a man"]
    vectors = np.array([line["embedding"] for line in lines], np.float32)
    assert vectors.shape == (3, 16)
    np.testing.assert_allclose((vectors**2).sum(1), 1, atol=1e-6)
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_photos_become_rows_of_an_array_in_their_order(model: Path, photo: Path, tmp_path: Path) -> None:
    other = photo.with_name("000001.png")
    output = tmp_path / "new" / "vectors.npy"
    outcome = _encode(model, other, photo, "--output", output)

    assert (outcome.code, outcome.stdout) == (0, "")
    assert outcome.stderr.endswith(f"embeddings (2, 16): {output}; their names: {tmp_path}/new/vectors.json\n")
    rows = np.load(output, allow_pickle=False)
    assert (rows.dtype, rows.shape) == (np.float32, (2, 16))
    assert json.loads(output.with_suffix(".json").read_text())["names"] == [str(other), str(photo)]
    lines = _lines(_encode(model, other, photo))
    assert [line["photo"] for line in lines] == [str(other), str(photo)]
    np.testing.assert_array_equal(np.array([line["embedding"] for line in lines], np.float32), rows)


def test_a_photo_that_cannot_be_read_is_named_and_has_no_row(model: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no photo")
    output = tmp_path / "vectors.npy"
    outcome = _encode(model, tmp_path / "notes.jpg", photo, tmp_path, "--output", output)

    assert outcome.code == 0
    assert f"Warning: {tmp_path / 'notes.jpg'}: not a JPEG" in outcome.warnings[0]
    assert f"Warning: {tmp_path}: cannot be read (Is a directory)" in outcome.warnings[1]
    assert outcome.warnings[2] == "Warning: 2 of 3 photos could not be read and have no vector"
    assert len(np.load(output)) == 1
    assert json.loads(output.with_suffix(".json").read_text())["names"] == [str(photo)]


def test_where_no_photo_can_be_read_nothing_is_written(model: Path, tmp_path: Path) -> None:
    outcome = _encode(model, tmp_path / "a.jpg", tmp_path / "b.jpg", "--output", tmp_path / "vectors.npy")
    assert "none of the 2 photos can be read" in outcome.error
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_not_utf8_is_kept(model: Path, photo: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(odd).write_bytes(photo.read_bytes())
    output = tmp_path / "vectors.npy"
    assert _encode(model, odd, "--output", output).code == 0
    (name,) = json.loads(output.with_suffix(".json").read_text())["names"]
    assert os.fsencode(name).endswith(b"caf\xe9.png")


def test_without_a_model_the_workspaces_best_is_taken(finished_workspace: Path, model: Path) -> None:
    assert _lines(succeed("encode", "-q", "a man", workspace=finished_workspace)) == _lines(
        _encode(model, "-q", "a man")
    )


def test_unknown_words_are_named(model: Path) -> None:
    outcome = _encode(model, "--query", "a zyx man")
    assert outcome.warnings == ["Warning: unknown words are ignored: zyx"]
    assert "the model knows none of its words (zyx)" in _encode(model, "--query", "a man", "--query", "zyx").error


@pytest.mark.parametrize(
    "arguments",
    [(), ("a.jpg", "--query", "a man"), ("--query", "a man", "--output", "vectors.txt"), ("--query",)],
)
def test_a_wrong_command_line_exits_with_2(model: Path, arguments: tuple[str, ...]) -> None:
    outcome = _encode(model, *arguments)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: dpce encode" in outcome.stderr


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "there is no such model folder" in _encode(tmp_path / "nowhere", "--query", "a man").error
