from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import dpce, succeed


@pytest.fixture
def photos(tmp_path: Path, finished_workspace: Path) -> Path:
    return shutil.copytree(Workspace(finished_workspace).load_dataset().root / "test", tmp_path / "photos")


def test_a_folder_is_indexed_searched_listed_and_its_gallery_removed(workspace: Path, photos: Path) -> None:
    (photos / "bad.png").write_text("no photo")
    os.utime(photos / "bad.png", (10**9, 10**9))
    first = succeed("index", photos, "--workers", "0", workspace=workspace)
    assert first.stdout == "gallery photos: 6 photos (7 new, 6 embedded, 1 unreadable)\n"
    assert len(first.warnings) == 1
    again = succeed("index", photos, "--workers", "0", workspace=workspace)
    assert (again.stdout, again.stderr) == ("gallery photos: 6 photos (nothing changed)\n", "")

    hits = json.loads(succeed("retrieve", "--gallery", "photos", "-q", "a man", "--json", workspace=workspace).stdout)
    assert {hit["path"] for hit in hits} == {str(path) for path in photos.iterdir() if path.name != "bad.png"}
    table = succeed("retrieve", "-g", "photos", "--image", photos / "000000.png", "-k", "1", workspace=workspace).stdout
    assert table.splitlines()[0] == f"gallery photos: {photos / '000000.png'}"
    assert table.splitlines()[2].split() == ["1", "1.000", str(photos / "000000.png")]

    listed = succeed("galleries", workspace=workspace).stdout.splitlines()
    assert listed[2].split()[:4] == ["photos", "6", "0", "1"]
    assert listed[3].startswith(f"photos: {photos / 'bad.png'}: not a JPEG")
    (state,) = json.loads(succeed("galleries", "--json", workspace=workspace).stdout)
    assert state["roots"] == [str(photos)]
    succeed("galleries", "--remove", "photos", workspace=workspace)
    assert json.loads(succeed("galleries", "--json", workspace=workspace).stdout) == []
    assert "there is no such gallery" in dpce("galleries", "--remove", "photos", workspace=workspace).error
    assert "no such gallery" in dpce("retrieve", "-g", "photos", "-q", "a man", workspace=workspace).error


def test_a_list_of_sentences_is_searched_with_a_photo_and_drawn(workspace: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a man\na woman\nzyx\n")
    outcome = succeed("index", tmp_path / "labels.txt", workspace=workspace)
    assert outcome.stdout == "gallery labels: 2 sentences (3 new, 2 embedded, 1 unreadable)\n"
    query = ("retrieve", "-g", "labels", "--image", photos / "000000.png")
    hits = json.loads(succeed(*query, "--json", "--sheet", tmp_path / "sheet.png", workspace=workspace).stdout)
    assert {hit["caption"] for hit in hits} == {"a man", "a woman"}
    assert (tmp_path / "sheet.png").is_file()


def test_the_model_of_a_gallery_is_remembered(workspace: Path, photos: Path, tmp_path: Path) -> None:
    succeed("export", tmp_path / "model", workspace=workspace)
    succeed("index", photos, "--model", tmp_path / "model", "--workers", "0", workspace=tmp_path / "other")
    assert "nothing changed" in succeed("index", photos, "--workers", "0", workspace=tmp_path / "other").stdout
    assert succeed("retrieve", "-g", "photos", "-q", "a man", workspace=tmp_path / "other").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("-q", "a man", "--unique"),
        ("-q", "a man", "--gallery", "photos", "--split", "test"),
        ("-q", "a man", "--gallery", "photos", "--since", "yesterday"),
    ],
)
def test_options_that_do_not_go_together_exit_with_2(workspace: Path, arguments: tuple[str, ...]) -> None:
    assert dpce("retrieve", *arguments, workspace=workspace).code == 2


def test_a_name_that_leads_out_of_the_workspace_is_refused(workspace: Path, photos: Path) -> None:
    assert "--name '../x'" in dpce("index", photos, "--name", "../x", workspace=workspace).error
    assert "--name '../x'" in dpce("retrieve", "-g", "../x", "-q", "a", workspace=workspace).error
