from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import Outcome, dpce, succeed


@pytest.fixture
def photo(finished_workspace: Path) -> Path:
    return Workspace(finished_workspace).load_dataset().root / "test" / "000000.png"


def _retrieve(workspace: Path, *arguments: str | Path) -> Outcome:
    return dpce("retrieve", *arguments, workspace=workspace)


def _json(workspace: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    outcome = succeed("retrieve", "--json", *arguments, workspace=workspace)
    hits: list[dict[str, Any]] = json.loads(outcome.stdout)
    return hits


def test_a_sentence_ranks_photos(workspace: Path) -> None:
    outcome = _retrieve(workspace, "--query", "a blonde woman", "--top-k", "3")

    assert (outcome.code, outcome.stderr) == (0, "")
    title, header, *rows = outcome.stdout.splitlines()
    assert title == "scenes, test split, Stage 2: a blonde woman"
    assert header.split() == ["rank", "score", "path", "caption"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert all(row.split()[2].startswith("test/") for row in rows)


def test_a_photo_ranks_captions(workspace: Path, photo: Path) -> None:
    outcome = _retrieve(workspace, "--image", photo)

    assert (outcome.code, outcome.stderr) == (0, "")
    title, _, *rows = outcome.stdout.splitlines()
    assert title == f"scenes, test split, Stage 2: {photo}"
    assert [row.split()[0] for row in rows] == [str(rank) for rank in range(1, 11)]


@pytest.mark.parametrize("kind", ["query", "image"])
def test_the_json_has_the_hits_of_the_table(workspace: Path, photo: Path, kind: str) -> None:
    arguments = ("--query", "a [bold] man in red") if kind == "query" else ("--image", str(photo))
    rows = _retrieve(workspace, *arguments).stdout.splitlines()[2:]
    hits = _json(workspace, *arguments)

    assert [hit["rank"] for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert [row.split(maxsplit=3) for row in rows] == [
        [str(hit["rank"]), f"{hit['score']:.3f}", hit["path"], hit["caption"]] for hit in hits
    ]


def test_more_results_than_there_are_mean_all_of_them(workspace: Path, photo: Path) -> None:
    assert len(_json(workspace, "--query", "a man", "--top-k", "999")) == 6
    assert len(_json(workspace, "--image", photo, "--top-k", "999")) == 30


def test_another_split_is_searched(workspace: Path) -> None:
    succeed("extract-features", "--split", "train", "--workers", "0", workspace=workspace)

    assert {hit["image_id"].split("/")[0] for hit in _json(workspace, "-q", "a man", "--split", "train")} == {"train"}


def test_markup_in_a_query_is_printed_as_it_is(workspace: Path) -> None:
    outcome = succeed("retrieve", "-q", "a [red]man[/red] [/]", workspace=workspace)

    assert outcome.stdout.splitlines()[0] == "scenes, test split, Stage 2: a [red]man[/red] [/]"


@pytest.mark.parametrize("kind", ["query", "image"])
def test_a_contact_sheet_is_drawn(workspace: Path, photo: Path, tmp_path: Path, kind: str) -> None:
    arguments = ("--query", "a man") if kind == "query" else ("--image", str(photo))
    sheet = tmp_path / "new folder" / "sheet.png"
    outcome = succeed("retrieve", *arguments, "--json", "--sheet", sheet, workspace=workspace)

    assert json.loads(outcome.stdout)
    assert outcome.stderr == f"contact sheet: {sheet}\n"
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.width > 200


def test_csv_has_the_hits_of_the_json(workspace: Path, photo: Path) -> None:
    for arguments in (("--query", "a man"), ("--image", str(photo))):
        hits = _json(workspace, *arguments)
        outcome = succeed("retrieve", *arguments, "--csv", workspace=workspace)
        assert list(csv.DictReader(outcome.stdout.splitlines())) == [
            {
                "rank": str(hit["rank"]),
                "score": f"{hit['score']:.6f}",
                "relevance": "",
                "id": hit["image_id"],
                "path": hit["path"],
                "caption": hit["caption"],
                "date": "",
            }
            for hit in hits
        ]


def test_paths_are_those_of_the_photos_each_once(workspace: Path, photo: Path) -> None:
    root = photo.parents[1]
    lines = succeed("retrieve", "-q", "a man", "-k", "3", "--paths", workspace=workspace).stdout.splitlines()
    assert lines == [str(root / hit["path"]) for hit in _json(workspace, "-q", "a man", "-k", "3")]
    ended = succeed("retrieve", "-q", "a man", "-k", "3", "--paths", "--null", workspace=workspace).stdout
    assert ended == "".join(f"{line}\0" for line in lines)
    of_captions = succeed("retrieve", "-i", photo, "-k", "99", "--paths", workspace=workspace).stdout.splitlines()
    assert sorted(of_captions) == sorted(set(of_captions))
    assert len(of_captions) == 6


def test_a_page_and_a_sheet_are_written_beside_the_results(workspace: Path, tmp_path: Path) -> None:
    sheet, page = tmp_path / "sheet.png", tmp_path / "page.html"
    outcome = succeed("retrieve", "-q", "a man", "--paths", "--sheet", sheet, "--html", page, workspace=workspace)
    assert len(outcome.stdout.splitlines()) == 6
    assert outcome.stderr.splitlines() == [f"contact sheet: {sheet}", f"page: {page}"]
    assert page.read_text().count('<img src="data:image/jpeg;base64,') == 6


def test_missing_photos_are_named_once_and_counted_and_paths_are_printed_byte_for_byte(
    workspace: Path, photo: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(photo.parent, tmp_path / "photos")
    names = sorted(folder.iterdir())
    odd = names[2].rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9\n<img src=x onerror=alert(1)>.png"))
    succeed("index", folder, "--workers", "0", workspace=workspace)
    names[0].unlink()
    names[1].write_text("no photo")

    query = ("retrieve", "-g", "photos", "-q", "a man")
    files = ("--sheet", tmp_path / "sheet.png", "--html", tmp_path / "page.html")
    outcome = succeed(*query, "--paths", "--null", *files, workspace=workspace)
    assert sorted(outcome.stdout.split("\0")) == ["", *sorted(map(str, [*names[:2], odd, *names[3:]]))]
    assert [line.partition(";")[0] for line in sorted(outcome.warnings)] == [
        f"Warning: {names[0]}: cannot be read (No such file or directory)",
        f"Warning: {names[1]}: not a JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF or HEIF image",
        "Warning: 2 photos cannot be shown",
    ]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:') == page.count("<img ") == 4
    assert "caf\\udce9" in page
    assert str(tmp_path) not in page
    assert "--null" in succeed(*query, "--paths", workspace=workspace).warnings[0]
    assert "caf\\udce9\\n<img" in succeed(*query, workspace=workspace).stdout


def test_sentences_of_a_list_have_no_paths(workspace: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a man\na woman\n")
    succeed("index", tmp_path / "labels.txt", workspace=workspace)
    query = ("retrieve", "-g", "labels", "-i", photo)
    assert "belong to no photo" in dpce(*query, "--paths", workspace=workspace).error
    assert succeed(*query, workspace=workspace).stdout.splitlines()[1].split() == ["rank", "score", "caption"]


def test_a_sheet_that_cannot_be_written_says_what_to_do_about_its_own_path(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    error = _retrieve(workspace, "-q", "a man", "--sheet", tmp_path / "file" / "sheet.png").error
    assert error.startswith(f"Error: {tmp_path}/file/sheet.png: cannot be written (")
    assert "--workspace" not in error


def test_unknown_words_are_named_and_ignored(workspace: Path) -> None:
    known = _json(workspace, "--query", "a blonde woman")
    outcome = succeed("retrieve", "--json", "--query", "a zyx blonde qwv woman", workspace=workspace)

    assert outcome.stderr == "Warning: unknown words are ignored: zyx, qwv\n"
    assert json.loads(outcome.stdout) == known


def test_a_long_query_is_cut_with_a_warning(workspace: Path) -> None:
    outcome = succeed("retrieve", "--query", "a man " * 250, workspace=workspace)

    assert outcome.warnings == ["Warning: only the first 32 of 500 known words are read"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("zyx Qwv!", "query 'zyx Qwv!': the model knows none of its words (zyx, qwv); use words of the training"),
        ("", "query '': the model knows none of its words; use words of the training captions"),
        (" \n!?", "query ' \\n!?': the model knows none of its words"),
    ],
)
def test_a_query_without_a_known_word_is_refused(workspace: Path, query: str, expected: str) -> None:
    assert expected in _retrieve(workspace, "--query", query).error


def test_a_query_photo_that_is_missing_or_no_image_is_refused(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:1500])

    missing = _retrieve(workspace, "--image", tmp_path / "missing.png").error
    assert f"{tmp_path / 'missing.png'}: cannot be read (No such file or directory)" in missing
    assert f"{tmp_path / 'notes.png'}: not a JPEG, PNG" in _retrieve(workspace, "-i", tmp_path / "notes.png").error
    assert f"{tmp_path / 'cut.png'}: cannot be read (" in _retrieve(workspace, "-i", tmp_path / "cut.png").error
    assert f"{tmp_path}: cannot be read (Is a directory)" in _retrieve(workspace, "-i", tmp_path).error


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--query", "a man", "--image", "a.png"),
        ("--query", "a man", "--nosuch"),
        ("--query", "a man", "--top-k", "0"),
        ("--query", "a man", "--top-k", "ten"),
        ("a man",),
        ("--query", "a man", "--json", "--csv"),
        ("--query", "a man", "--paths", "--json"),
        ("--query", "a man", "--null"),
        ("--query", "a man", "--sheet", "a.png", "--html", "a.png"),
    ],
)
def test_a_wrong_command_line_exits_with_2(workspace: Path, arguments: tuple[str, ...]) -> None:
    outcome = _retrieve(workspace, *arguments)

    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: dpce retrieve" in outcome.stderr


def test_results_have_a_relevance_once_the_val_split_is_extracted(workspace: Path) -> None:
    query = ("retrieve", "--query", "a woman in blue")
    refused = dpce(*query, "--min-relevance", "0.5", workspace=workspace).error
    assert "--min-relevance: the relevance of these results is not known" in refused
    assert "dpce extract-features --split val" in refused

    succeed("extract-features", "--split", "val", "--workers", "0", workspace=workspace)
    hits = json.loads(succeed(*query, "--json", workspace=workspace).stdout)
    assert all(0 < hit["relevance"] < 1 for hit in hits)
    _, header, first, *_ = succeed(*query, workspace=workspace).stdout.splitlines()
    assert header.split()[:3] == ["rank", "score", "relevance"]
    assert first.split()[2:4] == [f"{100 * hits[0]['relevance']:.0f}", "%"]
    table = csv.DictReader(succeed(*query, "--csv", workspace=workspace).stdout.splitlines())
    assert [float(row["relevance"]) for row in table] == pytest.approx([hit["relevance"] for hit in hits], abs=1e-4)

    least = str(hits[1]["relevance"])
    some = json.loads(succeed(*query, "--json", "--min-relevance", least, workspace=workspace).stdout)
    assert some == [hit for hit in hits if hit["relevance"] >= hits[1]["relevance"]]
    none = succeed(*query, "--json", "--min-relevance", "1", workspace=workspace)
    assert json.loads(none.stdout) == []
    best = f"{100 * hits[0]['relevance']:.0f} %"
    assert none.stderr == f"nothing found; the best result has a relevance of {best}\n"


def test_terms_are_added_to_a_query_and_taken_away_from_it(workspace: Path) -> None:
    plain = succeed("retrieve", "--query", "a woman", "--json", workspace=workspace)
    combined = succeed(
        "retrieve", "--query", "a woman", "--plus", "2:a taxi", "--minus", "a red car", "--json", workspace=workspace
    )
    assert json.loads(plain.stdout) != json.loads(combined.stdout)
    assert all(hit["relevance"] is None for hit in json.loads(combined.stdout))
    table = succeed("retrieve", "--query", "a woman", "--minus", "a red car", workspace=workspace)
    assert "minus a red car" in table.stdout
    refused = dpce("retrieve", "--query", "a woman", "--plus", "0:a taxi", workspace=workspace)
    assert (refused.code, "the weight must be above 0" in refused.error) == (1, True)
    missing = dpce("retrieve", "--query", "a woman", "--plus", "image:none.jpg", workspace=workspace)
    assert (missing.code, "none.jpg" in missing.error) == (1, True)
