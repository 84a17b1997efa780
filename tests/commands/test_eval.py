from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpce_cli.core.galleries.gallery import about_gallery
from dpce_cli.core.storage.rows import open_or_resume, read_store
from dpce_cli.core.teaching.captions import CaptionsOfGallery, find_photo
from dpce_cli.core.workspace.features import load_feature_store
from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import dpce, succeed


def test_the_table_says_what_was_measured_on_what(workspace: Path) -> None:
    outcome = succeed("eval", workspace=workspace)
    fingerprint = load_feature_store(workspace / "scenes" / "features" / "test.h5").meta["checkpoint"]

    title, header, *rows = outcome.stdout.splitlines()
    assert title.startswith(
        f"scenes, test split: 6 images, 30 captions; Stage 2 model {fingerprint[:12]}; "
        "protocol full: all images and captions; RSUM "
    )
    assert header.split("  ")[0] == "direction"
    assert [row.split("  ")[0] for row in rows] == [
        *("image-to-text", "text-to-image"),
        *("image-to-text, hubs corrected", "text-to-image, hubs corrected"),
    ]
    assert outcome.stderr == ""


def test_the_json_has_the_numbers_of_the_table(workspace: Path) -> None:
    title, _, *rows = succeed("eval", workspace=workspace).stdout.splitlines()
    outcome = succeed("eval", "--json", workspace=workspace)

    metrics = json.loads(outcome.stdout)
    assert (metrics["dataset"], metrics["split"], metrics["stage"]) == ("scenes", "test", 2)
    assert (metrics["protocol"], metrics["images"], metrics["captions"]) == ("full", 6, 30)
    assert succeed("eval", "--format", "json", workspace=workspace).stdout == outcome.stdout
    corrected = metrics["hubs_corrected"]
    assert title.endswith(f"RSUM {metrics['rsum']:.1f}, hubs corrected {corrected['rsum']:.1f}")
    directions = [by[name] for by in (metrics, corrected) for name in ("image_to_text", "text_to_image")]
    for row, measured in zip(rows, directions, strict=True):
        assert row.replace(", hubs corrected", "").split()[1:] == [
            *(f"{100 * measured[key]:.1f}" for key in ("r1", "r5", "r10")),
            f"{measured['median_rank']:g}",
            f"{measured['mean_rank']:.1f}",
            f"{100 * measured['map']:.1f}",
        ]
    assert outcome.stderr == ""


@pytest.mark.parametrize(
    ("form", "start", "between", "end"), [("markdown", "| ", " | ", " |"), ("latex", "", " & ", r" \\")]
)
def test_a_row_for_a_paper_has_recalls_and_median_ranks(
    workspace: Path, form: str, start: str, between: str, end: str
) -> None:
    metrics = json.loads(succeed("eval", "--json", workspace=workspace).stdout)
    outcome = succeed("eval", "--format", form, workspace=workspace)

    lines = []
    for way, measured in (("", metrics), (" hubs corrected,", metrics["hubs_corrected"])):
        cells = [f"scenes test, full,{way} Stage 2 {metrics['checkpoint'][:12]}"]
        for name in ("image_to_text", "text_to_image"):
            cells += [f"{100 * measured[name][key]:.1f}" for key in ("r1", "r5", "r10")]
            cells.append(f"{measured[name]['median_rank']:g}")
        lines.append(start + between.join(cells) + end)
    assert outcome.stdout.splitlines() == lines


def test_details_are_measured_beside_recall(workspace: Path) -> None:
    (workspace / "words.toml").write_text('"man or woman" = ["man woman"]\nfruit = ["apple pear"]\n')
    arguments = ("eval", "--details", str(workspace / "words.toml"))
    details = json.loads(succeed(*arguments, "--json", workspace=workspace).stdout)["details"]
    assert details["fruit"] is None
    assert 0 <= details["man or woman"]["accuracy"] <= 1

    recall, table = succeed(*arguments, workspace=workspace).stdout.split("\n\n")
    assert recall + "\n" == succeed("eval", workspace=workspace).stdout
    title, header, people, fruit = table.splitlines()
    assert title.startswith("One detail of a caption swapped: how often the photo prefers the true caption (chance:")
    assert header.split("  ")[0] == "detail"
    found = details["man or woman"]
    assert people.split() == [
        "man",
        "or",
        "woman",
        str(found["captions"]),
        *(f"{100 * found[name]:.1f}" for name in ("accuracy", "balanced")),
    ]
    assert fruit.split() == ["fruit", "0"]

    assert "--details is for tables and JSON" in dpce(*arguments, "--format", "latex", workspace=workspace).stderr


def test_by_identity_there_is_one_direction(workspace: Path) -> None:
    assert (
        "carry no identities; choose --protocol full"
        in dpce("eval", "--protocol", "identity", workspace=workspace).error
    )
    path = workspace / "scenes" / "features" / "test.h5"
    store = read_store(path, remedy="")
    constants = {**store.texts, "identities": ["ann", "bob", "ann", "", "", "bob"]}
    with open_or_resume(path, arrays={}, constants={**store.arrays, **constants}, meta=store.meta) as changed:
        changed.finish()

    title, _, row, _ = succeed("eval", workspace=workspace).stdout.splitlines()
    assert title.endswith("; protocol identity: any image of the caption's identity is a hit")
    measured = json.loads(succeed("eval", "--json", workspace=workspace).stdout)["text_to_image"]
    cells = succeed("eval", "--format", "markdown", workspace=workspace).stdout.splitlines()[0].split(" | ")
    recalls = [f"{100 * measured[key]:.1f}" for key in ("r1", "r5", "r10")]
    assert row.split()[1:4] == cells[1:4] == recalls
    assert cells[4].split()[0] == row.split()[6] == f"{100 * measured['map']:.1f}"


def test_1k_needs_five_thousand_images(workspace: Path) -> None:
    error = dpce("eval", "--protocol", "1k", workspace=workspace).error
    assert "--protocol 1k needs 5,000 images and the split has 6" in error


def test_another_split_is_evaluated_once_it_is_extracted(workspace: Path) -> None:
    error = dpce("eval", "--split", "val", workspace=workspace).error
    assert "val.h5: not found; run 'dpce extract-features --split val'; extracted are: test" in error

    succeed("extract-features", "--split", "val", "--workers", "0", workspace=workspace)
    assert succeed("eval", "--split", "val", workspace=workspace).stdout.startswith("scenes, val split: ")


def test_a_damaged_feature_store_is_refused(workspace: Path) -> None:
    path = workspace / "scenes" / "features" / "test.h5"
    path.write_bytes(path.read_bytes()[:2000])

    error = dpce("eval", workspace=workspace).error
    assert str(path) in error
    assert "dpce extract-features --split test" in error


@pytest.mark.parametrize("arguments", [("--nosuch",), ("--stage", "1"), ("test",), ("--json", "--format", "latex")])
def test_a_wrong_command_line_exits_with_2(workspace: Path, arguments: tuple[str, ...]) -> None:
    outcome = dpce("eval", *arguments, workspace=workspace)

    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: dpce eval" in outcome.stderr


def test_a_gallery_is_evaluated_with_the_captions_that_a_person_wrote(workspace: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(Workspace(workspace).load_dataset().root / "test", tmp_path / "photos")
    succeed("index", photos, "--workers", "0", workspace=workspace)
    captions = CaptionsOfGallery(workspace / "teaching" / "photos")
    gallery = workspace / "galleries" / "photos"
    model = about_gallery(gallery).fingerprint
    for number in range(4):
        captions.add(find_photo(gallery, Path(f"{number:06}.png")), f"a man and {number} taxis", model)
    assert "gallery 'photos': 4 photos have captions" in dpce("eval", "-g", "photos", workspace=workspace).error
    captions.add(find_photo(gallery, Path("000004.png")), "a woman", model)

    measured = json.loads(succeed("eval", "--gallery", "photos", "--json", workspace=workspace).stdout)
    assert (measured["gallery"], measured["images"], measured["captions"]) == ("photos", 5, 5)
    assert measured["text_to_image"]["gallery"] == 6
    lines = succeed("eval", "--gallery", "photos", workspace=workspace).stdout.splitlines()
    assert lines[0].startswith(
        "gallery photos: 5 captions of 5 photos that the model (scenes, Stage 2) was not trained"
    )
    r10 = measured["text_to_image"]["r10"]
    cell = f"{100 * r10['value']:.1f} ({100 * r10['low']:.0f}-{100 * r10['high']:.0f})"
    (row,) = [line for line in lines if line.startswith("text-to-image ")]
    assert cell in row
    assert row.endswith("5 in 6")


@pytest.mark.parametrize("arguments", [("--split", "val"), ("--protocol", "full"), ("--format", "latex")])
def test_a_gallery_takes_no_options_of_a_split(workspace: Path, arguments: tuple[str, str]) -> None:
    assert dpce("eval", "--gallery", "photos", *arguments, workspace=workspace).code == 2
