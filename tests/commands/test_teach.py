from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from dpce_cli.core.galleries.gallery import about_gallery, recorded_model
from dpce_cli.core.teaching import teaching
from dpce_cli.core.teaching.captions import CaptionsOfGallery
from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import dpce, succeed


@pytest.fixture
def table(workspace: Path, tmp_path: Path) -> Path:
    """Captions of five photos of the gallery `photos`; the last one is held out."""
    photos = shutil.copytree(Workspace(workspace).load_dataset().root / "test", tmp_path / "photos")
    succeed("index", photos, "--workers", "0", workspace=workspace)
    return write(tmp_path / "rex.csv", [(f"{n:06}.png", f"rex and {('a man', 'a taxi')[n % 2]}") for n in range(5)])


def write(path: Path, captions: list[tuple[str, str]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *captions])
    return path


def found(workspace: Path, query: str) -> list[tuple[str, float, float]]:
    outcome = succeed("retrieve", "-g", "photos", "-q", query, "--json", workspace=workspace)
    return [(hit["path"], hit["score"], hit["relevance"]) for hit in json.loads(outcome.stdout)]


def test_a_name_is_learnt_and_forgotten_again(workspace: Path, table: Path) -> None:
    gallery, captions = workspace / "galleries" / "photos", CaptionsOfGallery(workspace / "teaching" / "photos")
    base, before = about_gallery(gallery).fingerprint, found(workspace, "a man")
    assert "knows none of its words (rex)" in dpce("retrieve", "-g", "photos", "-q", "rex", workspace=workspace).error
    assert "no caption is written for its photos" in dpce("teach", "photos", workspace=workspace).error

    taught = succeed("teach", "photos", "--captions", table, workspace=workspace)
    assert taught.stdout == (
        f"4 captions of 4 photos; learnt: rex (4 photos)\ngallery photos uses {captions.folder / 'model-1'}\n"
    )
    assert f"5 captions added to {captions.path}\n" in taught.stderr
    assert len(found(workspace, "rex")) == 6
    assert found(workspace, "a man") == before
    assert (
        "1 photos have captions that the model was not trained on"
        in dpce("eval", "-g", "photos", workspace=workspace).error
    )
    card = (captions.folder / "model-1" / "README.md").read_text()
    assert "## Results" in card
    assert "`rex` (4 photos)" in card

    more = write(table.with_name("more.csv"), [("000005.png", "rex"), ("000000.png", "rex and a man")])
    again = succeed("teach", "photos", "--captions", more, workspace=workspace)
    assert f"1 captions added to {captions.path}\n" in again.stderr
    assert again.stdout.startswith("5 captions of 5 photos; learnt: rex (5 photos)\n")
    assert again.stdout.endswith(f"gallery photos uses {captions.folder / 'model-2'}\n")
    assert sorted(path.name for path in captions.folder.glob("model-*")) == ["model-2"]
    assert "nothing changed" in succeed("index", table.parent / "photos", "--workers", "0", workspace=workspace).stdout

    for one in captions.read():
        captions.remove(one.content, one.caption)
    forgotten = succeed("teach", "photos", workspace=workspace)
    assert forgotten.stdout.splitlines() == [
        "0 captions of 0 photos; learnt: nothing",
        f"gallery photos uses {captions.folder / 'base'}",
    ]
    assert about_gallery(gallery).fingerprint == base
    assert found(workspace, "a man") == before
    assert not list(captions.folder.glob("model-*"))


def test_a_taught_model_is_measured_on_photos_that_it_has_not_seen(workspace: Path, table: Path) -> None:
    rows = [(f"{n:06}.png", "rex") for n in range(6)]
    with patch.object(teaching, "FEWEST_PHOTOS", 3), patch("dpce_cli.core.teaching.evaluation.FEWEST", 1):
        succeed("teach", "photos", "--captions", write(table, rows), workspace=workspace)
        card = (workspace / "teaching" / "photos" / "model-1" / "README.md").read_text()
        measured = json.loads(succeed("eval", "-g", "photos", "--json", workspace=workspace).stdout)
    assert (measured["images"], measured["captions"]) == (1, 1)
    assert "with 1 captions of 1 photos that the model was not trained on" in card
    assert "| text-to-image, hubs corrected | 100.0 (21 to 100) |" in card  # all photos carry this caption


def test_teaching_that_is_killed_at_the_end_changes_nothing_and_runs_again(workspace: Path, table: Path) -> None:
    gallery = workspace / "galleries" / "photos"
    before = recorded_model(gallery), found(workspace, "a man")
    with patch.object(teaching, "change_model", side_effect=KeyboardInterrupt):
        assert dpce("teach", "photos", "--captions", table, workspace=workspace).code == 130
    assert (recorded_model(gallery), found(workspace, "a man")) == before
    succeed("teach", "photos", workspace=workspace)
    assert [path.name for path in (workspace / "teaching" / "photos").glob("model-*")] == ["model-2"]


def test_words_that_cannot_be_learnt_are_named(workspace: Path, table: Path) -> None:
    known = write(table, [(f"{n:06}.png", "a man" if n else "a man and rex") for n in range(4)])
    error = dpce("teach", "photos", "--captions", known, workspace=workspace).error
    assert "the model knows each word of the 4 captions, except words in captions of fewer than 3 photos (rex)" in error
    missing = write(table, [("nosuch.png", "rex")])
    assert (
        f"{missing}:2: nosuch.png: the gallery 'photos' has no such photo"
        in dpce("teach", "photos", "--captions", missing, workspace=workspace).error
    )
    assert "there is no such gallery" in dpce("teach", "others", workspace=workspace).error
    assert "--name '../x'" in dpce("teach", "../x", workspace=workspace).error


def test_a_base_model_that_was_replaced_is_named(workspace: Path, table: Path) -> None:
    succeed("teach", "photos", "--captions", table, workspace=workspace)
    shutil.rmtree(workspace / "teaching" / "photos" / "base")
    error = dpce("teach", "photos", workspace=workspace).error
    assert "there is no such model folder" in error
