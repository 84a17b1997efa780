"""All commands on a data set in tar shards: the results equal those of the same photos as single files."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from dpce_cli.core.progress import Reporter
from dpce_cli.core.scenes.dataset import build_scenes
from dpce_cli.core.workspace.features import load_feature_store
from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import TINY, dpce, succeed
from tests.core.tiny import TinyCNN, save_weights
from tests.tars import unpack, write_tar

COUNTS = {"train": 12, "val": 6, "test": 6}
SMALL = ("--preset", "scenes", *TINY, "--workers", "0")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two or three shards per split, written by the webdataset library."""
    root = tmp_path_factory.mktemp("root")
    scenes = build_scenes(root / "scenes", seed=0, counts=COUNTS, size=48, reporter=Reporter())
    for split in COUNTS:
        images = [image for image in scenes.images if image.split == split]
        pattern = str(root / "shards" / f"{split}-%06d.tar")
        (root / "shards").mkdir(exist_ok=True)
        with webdataset.ShardWriter(pattern, maxcount=5, verbose=0) as writer:
            for image in images:
                writer.write(
                    {
                        "__key__": Path(image.path).stem,
                        "png": (scenes.root / image.path).read_bytes(),
                        "txt": "\n".join(image.captions),
                    }
                )
    return root / "shards"


@pytest.fixture(scope="module")
def folder(shards: Path) -> Path:
    """The same photos, captions and splits as loose files; a folder is named after each shard."""
    folder = unpack(shards, shards.parent / "loose")
    with open(folder / "captions.jsonl", "w", encoding="utf-8") as file:
        for photo in sorted(folder.rglob("*.png")):
            path, captions = photo.relative_to(folder).as_posix(), photo.with_suffix(".txt").read_text().splitlines()
            record = {"image": path, "split": path.partition("-")[0], "captions": captions}
            file.write(json.dumps(record) + "\n")
    return folder


def results(root: Path, dataset: str, workspace: Path, *arguments: str) -> dict[str, Any]:
    """What all commands compute, from preparation to search."""
    prepared = succeed(
        "prepare-vocab", dataset, "--root", root, "--name", "streets", *SMALL, *arguments, workspace=workspace
    )
    assert prepared.warnings == []
    assert [row.split()[:3] for row in prepared.stdout.splitlines()[2:]] == [
        [split, str(count), str(5 * count)] for split, count in COUNTS.items()
    ]
    succeed("build-word2vec", workspace=workspace)
    for command in ("train-stage1", "train-stage2", "extract-features"):
        succeed(command, "--workers", "0", workspace=workspace)
    store = load_feature_store(Workspace(workspace).features_path("test"))
    measured = json.loads(succeed("eval", "--json", workspace=workspace).stdout)
    assert measured.pop("dataset") == "streets"
    sheet = workspace / "sheet.png"
    query = ("--query", "a red car", "--sheet", sheet)
    return {
        "ids": store.image_ids,
        "images": store.image_embeddings.tolist(),
        "texts": store.text_embeddings.tolist(),
        "measured": measured,
        "hits": json.loads(succeed("retrieve", "--json", *query, workspace=workspace).stdout),
        "captions": json.loads(
            succeed("retrieve", "--json", "--image", root / store.image_paths[0], workspace=workspace).stdout
        ),
        "sheet": sheet.read_bytes(),
    }


@pytest.mark.parametrize("kind", ["photos", "cache", "resized"])
def test_shards_give_what_the_same_photos_give_as_files(tmp_path: Path, shards: Path, folder: Path, kind: str) -> None:
    arguments = []
    if kind == "resized":
        arguments.append("--resize-images")
    if kind == "cache":
        frozen = [f"stage{stage}.multipliers.{group}=0" for stage in (1, 2) for group in ("backbone", "backbone_bias")]
        weights = save_weights(tmp_path / "weights.pt", TinyCNN())
        arguments += [word for key in (*frozen, f"image.backbone_weights={weights}") for word in ("--set", key)]
    stored = results(shards, "webdataset", tmp_path / "stored", *arguments)
    assert stored == results(folder, "folder", tmp_path / "loose", *arguments)
    assert (tmp_path / "stored" / "streets" / "cache").is_dir() == (kind == "cache")
    assert bool(list((tmp_path / "stored" / "streets").glob("photos-*"))) == (kind == "resized")


def test_for_shards_that_were_written_again_the_error_says_to_prepare_them_again(tmp_path: Path, shards: Path) -> None:
    root, workspace = shutil.copytree(shards, tmp_path / "root"), tmp_path / "w"
    succeed("prepare-vocab", "webdataset", "--root", root, *SMALL, workspace=workspace)
    succeed("train-stage1", "--no-word-vectors", "--workers", "0", workspace=workspace)
    for shard in root.glob("test-*.tar"):
        with tarfile.TarFile(shard) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        write_tar(shard, members[2:])
    outcome = dpce("extract-features", "--workers", "0", workspace=workspace)
    assert outcome.error.endswith("none of the 6 test photos can be read; put them there and run again")
    assert len(outcome.warnings) == 6
    assert all("run 'dpce prepare-vocab webdataset' again: skipped" in warning for warning in outcome.warnings)
