"""A folder of a person's own photos, some of them unusable, through all commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpce_cli.core.workspace.features import load_feature_store
from tests.command_line import TINY, Outcome, dpce, succeed
from tests.core.tiny import TinyCNN, save_weights, write_photo

UNREADABLE = ("empty.jpg", "text.png", "truncated.jpg")
UNUSUAL = ("animated.gif", "cmyk.jpg", "deep.png", "grey.png", "palette.png")
SPLITS = ("train", "test")


def _noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def _write_photos(folder: Path) -> None:
    """Every unusual and unreadable kind of photo, beside three plain ones."""
    for index in range(3):
        write_photo(folder / f"plain{index}.png", index)
    _noise(40, 48, 4).convert("CMYK").save(folder / "cmyk.jpg")
    _noise(40, 48).save(folder / "grey.png")
    Image.fromarray(np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 34).save(folder / "deep.png")
    _noise(40, 48, 3).quantize(16).save(folder / "palette.png", transparency=3)
    _noise(40, 48, 3).save(folder / "animated.gif", save_all=True, append_images=[_noise(40, 48, 3).rotate(90)])
    _noise(200, 200, 3).save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:5000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no image")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    rows = ["image,caption,split"]
    for split in SPLITS:
        (root / split).mkdir(parents=True)
        _write_photos(root / split)
        rows += [f"{split}/{path.name},a photo called {path.stem},{split}" for path in sorted((root / split).iterdir())]
    (root / "captions.csv").write_text("\n".join([*rows, ""]))
    return root


def _prepare(root: Path, workspace: Path, *options: str) -> Outcome:
    arguments = ("--preset", "scenes", *TINY, *options)
    return succeed("prepare-vocab", "folder", "--root", root, *arguments, workspace=workspace)


def _named(outcome: Outcome, root: Path, split: str) -> set[str]:
    """The files of a split that a warning says are skipped."""
    lines = [line for line in outcome.warnings if line.endswith(": skipped")]
    paths = [Path(line.removeprefix("Warning: ").partition(": ")[0]) for line in lines]
    return {path.name for path in paths if path.parent == root / split}


def test_unreadable_photos_are_named_and_the_others_used(root: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    _prepare(root, workspace)
    trained = succeed("train-stage1", "--no-word-vectors", "--workers", "0", workspace=workspace)
    assert _named(trained, root, "train") <= set(UNREADABLE)
    assert "no validation split: the model of the last epoch is taken as the best" in trained.stderr

    features = workspace / root.name / "features" / "test.h5"
    extracted = succeed("extract-features", "--workers", "2", workspace=workspace)
    assert _named(extracted, root, "test") == set(UNREADABLE)
    assert extracted.warnings[-1] == (
        "Warning: 3 of 11 test photos could not be read; they and their captions are left out of results; "
        f"to try them again, delete {features} and run again"
    )
    store = load_feature_store(features)
    used = ("plain0.png", "plain1.png", "plain2.png", *UNUSUAL)
    assert sorted(store.image_ids) == sorted(f"test/{name}" for name in used)
    assert sorted(store.captions) == sorted(f"a photo called {Path(name).stem}" for name in used)

    metrics = json.loads(succeed("eval", "--json", workspace=workspace).stdout)
    assert (metrics["image_to_text"]["queries"], metrics["text_to_image"]["gallery"]) == (8, 8)
    sheet = tmp_path / "sheet.png"
    succeed("retrieve", "--query", "a photo called deep", "--sheet", sheet, workspace=workspace)
    for name in UNUSUAL:
        succeed("retrieve", "--image", root / "test" / name, workspace=workspace)


def test_unreadable_photos_of_a_frozen_cnn_are_named_and_counted(root: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "weights.pt", TinyCNN())
    workspace = tmp_path / "w"
    _prepare(root, workspace)
    frozen = ("--set", "stage1.multipliers.backbone=0", "--set", "stage1.multipliers.backbone_bias=0")
    trained = succeed(
        "train-stage1", "--no-word-vectors", "--workers", "0", "--backbone-weights", weights, *frozen,
        workspace=workspace,
    )  # fmt: skip

    assert _named(trained, root, "train") == set(UNREADABLE)
    assert any(
        line.startswith("Warning: 3 of 11 train photos could not be read and are left out") for line in trained.warnings
    )


def _caption_folder(root: Path, captions: Mapping[str, tuple[str, str]]) -> Path:
    root.mkdir()
    for index, (name, (split, caption)) in enumerate(captions.items()):
        write_photo(root / name, index)
        line = {"image": name, "caption": caption, "split": split}
        with open(root / "captions.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
    return root


def test_captions_of_unknown_words_and_of_500_words_are_survived(tmp_path: Path) -> None:
    root = _caption_folder(
        tmp_path / "photos",
        {
            "a.png": ("train", "a red dog"),
            "b.png": ("train", "a blue dog"),
            "c.png": ("train", "dog " * 500),
            "d.png": ("train", "a green dog"),
            "e.png": ("test", "zyx qwv"),
            "f.png": ("test", "red " * 500),
            "g.png": ("test", "?!"),
        },
    )
    workspace = tmp_path / "w"
    summary = _prepare(root, workspace).stdout.splitlines()
    assert [row.split() for row in summary[2:]] == [
        ["train", "4", "4", "1", "0.0%"],
        ["test", "3", "3", "1", "0.4%"],
    ]
    succeed("build-word2vec", workspace=workspace)
    succeed("train-stage1", "--workers", "0", workspace=workspace)
    extracted = succeed("extract-features", "--workers", "0", workspace=workspace)
    assert extracted.warnings == ["Warning: 2 of 3 test captions have no known word; they are embedded as blanks"]
    assert json.loads(succeed("eval", "--json", workspace=workspace).stdout)["text_to_image"]["queries"] == 3


def test_training_captions_without_a_vector_are_left_out_and_counted(tmp_path: Path) -> None:
    captions = {f"{index}.png": ("train", f"a dog w{index}" if index else "zyx") for index in range(6)}
    root = _caption_folder(tmp_path / "photos", captions)
    workspace, vectors = tmp_path / "w", tmp_path / "vectors.txt"
    vectors.write_text("a 1 2\ndog 2 1\n")
    _prepare(root, workspace)
    succeed("build-word2vec", "--vectors", vectors, "--oov", "drop", workspace=workspace)
    trained = succeed("train-stage1", "--workers", "0", workspace=workspace)

    assert "Warning: 1 training captions have no known word and are left out" in trained.warnings


def test_a_data_set_of_which_no_photo_can_be_read_is_refused(tmp_path: Path) -> None:
    captions = {f"{index}.png": ("train", f"a dog w{index}") for index in range(5)}
    root = _caption_folder(tmp_path / "photos", captions)
    workspace = tmp_path / "w"
    _prepare(root, workspace)
    for path in root.glob("*.png"):
        path.write_bytes(b"")

    error = dpce("train-stage1", "--no-word-vectors", "--workers", "0", workspace=workspace).error
    assert f"{root}: too few photos of step 0 can be read; put them there and run again" in error


def test_where_the_folder_of_photos_has_moved_nothing_is_lost(root: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    _prepare(root, workspace)
    training = ("train-stage1", "--no-word-vectors", "--workers", "0", "--fresh")
    succeed(*training, workspace=workspace)
    best = workspace / root.name / "stage1" / "best.pt"
    before = best.read_bytes()
    (tmp_path / "moved").mkdir()
    moved = root.rename(tmp_path / "moved" / root.name)

    for command in (training, ("extract-features", "--workers", "0")):
        error = dpce(*command, workspace=workspace).error
        assert (
            f"{root}: the folder of the photos is not there; put it back, or if it has moved, run 'dpce prepare"
            in error
        )
    assert best.read_bytes() == before
    assert f"--name {root.name}:" in error
    _prepare(moved, workspace, "--name", root.name)
    succeed("extract-features", "--workers", "0", workspace=workspace)


def test_a_split_of_which_no_photo_can_be_read_is_refused(root: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    _prepare(root, workspace)
    succeed("train-stage1", "--no-word-vectors", "--workers", "0", workspace=workspace)
    for path in (root / "test").iterdir():
        path.unlink()

    error = dpce("extract-features", "--workers", "0", workspace=workspace).error
    assert f"{root}: none of the 11 test photos can be read; put them there and run again" in error
    assert not (workspace / root.name / "features" / "test.h5").exists()
