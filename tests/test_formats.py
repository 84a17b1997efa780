"""The published layouts of data sets, each through all commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpce_cli.core.data.records import CaptionedImages
from dpce_cli.core.progress import Reporter
from dpce_cli.core.scenes.dataset import build_scenes
from dpce_cli.core.workspace.features import load_feature_store
from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import TINY, Outcome, dpce, succeed
from tests.core.tiny import dataset_file
from tests.layouts import lay_out_scenes, make_coco, make_flickr30k

COUNTS = {"train": 12, "val": 6, "test": 6}
SMALL = ("--preset", "scenes", *TINY)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> CaptionedImages:
    root = tmp_path_factory.mktemp("scenes")
    return build_scenes(root, seed=0, counts=COUNTS, size=48, reporter=Reporter())


def prepare(root: Path, workspace: Path, dataset: str, *arguments: str) -> Outcome:
    return succeed("prepare-vocab", dataset, "--root", root, *SMALL, *arguments, workspace=workspace)


@pytest.mark.parametrize(
    ("dataset", "negatives"),
    [("coco", "hardest_in_pool"), ("flickr30k", "hardest_in_batch"), ("cuhk-pedes", "random")],
)
def test_every_published_layout_goes_through_all_commands(
    tmp_path: Path, scenes: CaptionedImages, dataset: str, negatives: str
) -> None:
    root, workspace = tmp_path / "root", tmp_path / "w"
    lay_out_scenes(root, scenes, dataset)
    settings = [f"stage2.negatives={negatives}", "stage2.captions_per_image=1"]
    squash = ["image.squash=true"] if dataset == "cuhk-pedes" else []
    arguments = [argument for setting in (*settings, *squash) for argument in ("--set", setting)]
    prepared = prepare(root, workspace, dataset, "--resize-images", "--workers", "0", *arguments)
    assert prepared.warnings == []
    assert [row.split()[:3] for row in prepared.stdout.splitlines()[2:]] == [
        [split, str(count), str(5 * count)] for split, count in COUNTS.items()
    ]
    succeed("build-word2vec", workspace=workspace)
    stage1 = succeed("train-stage1", "--workers", "0", workspace=workspace)
    assert f": {6 if dataset == 'cuhk-pedes' else 12} instances, " in stage1.stderr
    for command in ("train-stage2", "extract-features"):
        succeed(command, "--workers", "0", workspace=workspace)

    store = load_feature_store(workspace / dataset / "features" / "test.h5")
    assert Path(Workspace(workspace).about()["root"]).match(f"{dataset}/photos-*")
    assert len(set(store.identities)) == (3 if dataset == "cuhk-pedes" else 1)
    assert ("" in store.identities) == (dataset != "cuhk-pedes")
    measured = json.loads(succeed("eval", "--json", workspace=workspace).stdout)
    assert measured["text_to_image"]["queries"] == 30
    hits = json.loads(succeed("retrieve", "--json", "--query", "a red car", workspace=workspace).stdout)
    assert {hit["image_id"] for hit in hits} == set(store.image_ids)


def test_drawn_splits_are_written_and_can_be_used_again(tmp_path: Path) -> None:
    root, workspace = make_flickr30k(tmp_path / "root"), tmp_path / "w"
    first = prepare(root, workspace, "flickr30k", "--splits", "paper")
    (written,) = (workspace / "flickr30k").glob("splits-*.json")
    assert f"the ids of each split are in {written}, a file for --splits" in first.stderr
    assert json.loads(written.read_text())["test"] == ["8.jpg", "9.jpg"]
    again = prepare(root, tmp_path / "again", "flickr30k", "--splits", str(written))
    assert again.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]
    assert (
        dataset_file(tmp_path / "again" / "flickr30k", "images.jsonl").read_bytes()
        == dataset_file(workspace / "flickr30k", "images.jsonl").read_bytes()
    )


@pytest.mark.parametrize("arguments", [("--splits", "paper"), ("--splits", "nowhere.json")])
def test_impossible_splits_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    root = make_coco(tmp_path / "root")
    error = dpce("prepare-vocab", "coco", "--root", root, *SMALL, *arguments, workspace=tmp_path / "w").error
    assert "--splits paper draws 5,000" in error or "nowhere.json: cannot be read" in error
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("dataset", ["coco", "flickr30k", "cuhk-pedes"])
def test_a_wrong_folder_is_described_in_one_line(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "root").mkdir()
    error = dpce("prepare-vocab", dataset, "--root", tmp_path / "root", workspace=tmp_path / "w").error
    assert "not laid out as" in error
    assert "found nothing; " in error


@pytest.mark.parametrize(
    ("dataset", "preset"),
    [("coco", "paper-coco"), ("flickr30k", "paper-flickr30k"), ("cuhk-pedes", "paper-cuhk-pedes")],
)
def test_a_data_set_chooses_its_preset(tmp_path: Path, scenes: CaptionedImages, dataset: str, preset: str) -> None:
    lay_out_scenes(tmp_path / "root", scenes, dataset)
    outcome = succeed("prepare-vocab", dataset, "--root", tmp_path / "root", workspace=tmp_path / "w")
    assert f" words, preset {preset}, in " in outcome.stdout
