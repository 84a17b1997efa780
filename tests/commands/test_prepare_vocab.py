from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import SCENES, TINY, dpce, succeed
from tests.core.tiny import dataset_file


def _folder(root: Path, captions: str | bytes) -> Path:
    root.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(root / name)
    (root / "captions.csv").write_bytes(captions if isinstance(captions, bytes) else captions.encode())
    return root


def test_scenes_are_drawn_tokenized_and_made_the_current_data_set(tmp_path: Path) -> None:
    outcome = succeed(*SCENES, workspace=tmp_path)

    title, header, *rows = outcome.stdout.splitlines()
    about = json.loads((tmp_path / "scenes" / "dataset.json").read_text())
    words = json.loads(dataset_file(tmp_path / "scenes", "vocabulary.json").read_text())["words"]
    assert title == f"scenes: {len(words)} words, preset scenes, in {tmp_path / 'scenes'}"
    assert header.split() == ["split", "images", "captions", "over", "32", "words", "unknown", "words"]
    assert [row.split()[:4] for row in rows] == [
        ["train", "12", "60", "0"],
        ["val", "6", "30", "0"],
        ["test", "6", "30", "0"],
    ]
    assert outcome.stderr.splitlines() == ["Drawing scenes | 24/24 | eta 0s", "tokenizing captions | 24/24 | eta 0s"]
    assert (tmp_path / "current").read_text() == "scenes\n"
    assert about["config"]["model"]["embedding_dim"] == 16
    assert Path(about["root"]).match(f"{tmp_path}/scenes/photos-*")
    assert len(list(Path(about["root"]).glob("*/*.png"))) == 24


def test_the_seed_decides_the_scenes(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        succeed(*SCENES, "--seed", seed, workspace=tmp_path / name)

    a, b, c = (dataset_file(tmp_path / name / "scenes", "images.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_a_folder_states_its_splits_and_what_is_left_out(tmp_path: Path) -> None:
    captions = "image,caption,split\na.png,a red dog,train\nb.png,a blue dog,val\nmissing.png,a cat,train\n"
    root = _folder(tmp_path / "photos", captions)
    outcome = succeed("prepare-vocab", "folder", "--root", root, workspace=tmp_path / "w")

    assert [row.split() for row in outcome.stdout.splitlines()[2:]] == [
        ["train", "1", "1", "0", "0.0%"],
        ["val", "1", "1", "0", "33.3%"],
    ]
    assert outcome.warnings == [
        f"Warning: left out: captions whose image is not in {root}: 1 (first: missing.png)",
        "Warning: left out: images without a caption: 1 (first: c.png)",
    ]


def test_captions_may_lie_outside_the_photos_folder(tmp_path: Path) -> None:
    root = _folder(tmp_path / "photos", "")
    captions = (root / "captions.csv").rename(tmp_path / "mine.jsonl")
    captions.write_text(
        '{"image": "a.png", "captions": ["a dog", "one dog"]}\n{"image": "b.png", "caption": "a cat"}\n'
    )
    outcome = succeed(
        "prepare-vocab", "folder", "--root", root, "--captions", captions, "--val-fraction", "0.5",
        workspace=tmp_path / "w",
    )  # fmt: skip

    assert [row.split()[0] for row in outcome.stdout.splitlines()[2:]] == ["train", "val"]


def test_flickr8k_without_a_test_list_has_no_test_split(tmp_path: Path, flickr8k_root: Path) -> None:
    outcome = succeed("prepare-vocab", "flickr8k", "--root", flickr8k_root, *TINY, workspace=tmp_path / "w")

    assert outcome.stdout.splitlines()[0].startswith("flickr8k: ")
    assert [row.split()[:3] for row in outcome.stdout.splitlines()[2:]] == [["train", "2", "2"], ["val", "1", "1"]]


@pytest.mark.parametrize("dataset", ["flickr8k", "folder"])
def test_a_missing_root_is_named(tmp_path: Path, dataset: str) -> None:
    outcome = dpce("prepare-vocab", dataset, "--root", tmp_path / "nowhere", workspace=tmp_path / "w")

    expected = f"Error: {tmp_path / 'nowhere'}: cannot be listed (No such file or directory)"
    assert outcome.error.startswith(expected)
    assert not (tmp_path / "w").exists()


def test_another_layout_than_flickr8k_is_described(tmp_path: Path) -> None:
    root = _folder(tmp_path / "photos", "image,caption\n")

    error = dpce("prepare-vocab", "flickr8k", "--root", root, workspace=tmp_path / "w").error
    assert f"{root}: not laid out as Flickr8k" in error
    assert "found a.png, b.png, c.png, captions.csv" in error


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (b"image,caption\na.png,a dog\nb.png,caf\xe9\n", "captions.csv:3: not UTF-8 text; save the file as UTF-8"),
        (b"image,words\na.png,a dog\n", "captions.csv:1: needs exactly one column caption"),
        (b"image,caption\n../a.png,a dog\n", "captions.csv:2: '../a.png' is not a path below the data set's folder"),
        (b"image,caption\n", "no image with a caption is left to read"),
        (b"image,caption,split\na.png,a dog,val\n", "no image is in the train split"),
        (b"image,caption\na.png,!!!\n", "none of the 0 words of the training captions occurs at least 1 times"),
    ],
)
def test_unusable_captions_are_refused_with_file_and_line(tmp_path: Path, captions: bytes, expected: str) -> None:
    root = _folder(tmp_path / "photos", captions)
    outcome = dpce("prepare-vocab", "folder", "--root", root, workspace=tmp_path / "w")

    assert expected in outcome.error
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("--preset", "nosuch"),
            "there is no preset 'nosuch'; choose one of scenes, flickr8k, flickr8k-384, flickr8k-fine-tuned, "
            "paper-flickr30k, ",
        ),
        (("--set", "nosuch=1"), "--set nosuch=1: expected KEY=VALUE with one of "),
        (("--set", "model.embedding_dim=wide"), "--set: model.embedding_dim is 'wide'; expected a whole number"),
        (("--set", "image.crop=65"), "the configuration needs image.resize of at least image.crop"),
    ],
)
def test_an_impossible_configuration_is_refused(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    outcome = dpce("prepare-vocab", "scenes", *arguments, workspace=tmp_path / "w")

    assert expected in outcome.error
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "arguments", [("flickr8k",), ("folder",), ("nosuch",), ("--nosuch",), ("--train-images", "1"), ("--seed", "-1")]
)
def test_a_wrong_command_line_exits_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    outcome = dpce("prepare-vocab", *arguments, workspace=tmp_path / "w")

    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: dpce prepare-vocab" in outcome.stderr
    assert not (tmp_path / "w").exists()


def test_a_path_below_a_file_cannot_be_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    outcome = dpce(*SCENES, workspace=tmp_path / "file" / "w")

    assert "cannot be written (Not a directory)" in outcome.error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("written", ["000003.png", "images-", "vocabulary-", "dataset.json", "current"])
def test_a_full_disk_leaves_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name.startswith(written):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        outcome = dpce(*SCENES, workspace=tmp_path)

    assert re.search(rf"{written}[^ ]*: cannot be written \(No space left on device\); free space", outcome.error)
    assert [
        path for path in tmp_path.rglob("*") if path.name.startswith((written, "current")) or path.suffix == ".tmp"
    ] == []
    assert "no data set is prepared here" in dpce("build-word2vec", workspace=tmp_path).error
    succeed(*SCENES, workspace=tmp_path)


@pytest.mark.parametrize("written", ["images-", "vocabulary-", "dataset.json"])
def test_a_data_set_that_could_not_be_replaced_whole_stays_as_it_was(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    before = Workspace(workspace).load_dataset()

    def full(source: Path, target: Path) -> None:
        if target.name.startswith(written):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        assert "No space left" in dpce(*SCENES, "--seed", "7", workspace=workspace).error

    assert Workspace(workspace).load_dataset() == before
    succeed("build-word2vec", "--train", workspace=workspace)


def test_what_is_replaced_leaves_no_file_behind(workspace: Path) -> None:
    succeed(*SCENES, "--seed", "7", workspace=workspace)
    names = [path.name for path in (workspace / "scenes").iterdir()]
    assert sum(name.startswith(("images-", "vocabulary-")) for name in names) == 2


def test_another_folder_of_the_same_name_is_not_replaced_silently(tmp_path: Path) -> None:
    for parent in ("one", "two"):
        (tmp_path / parent / "photos").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / parent / "photos" / "a.png")
        (tmp_path / parent / "photos" / "a.txt").write_text(f"a dog of {parent}")
    folder, workspace = (
        ("prepare-vocab", "folder", "--val-fraction", "0", *TINY, "--set", "text.min_count=1"),
        tmp_path / "w",
    )
    succeed(*folder, "--root", tmp_path / "one" / "photos", workspace=workspace)
    error = dpce(*folder, "--root", tmp_path / "two" / "photos", workspace=workspace).error
    assert f"was prepared from {tmp_path}/one/photos, not from {tmp_path}/two/photos; choose another --name" in error
    succeed(*folder, "--root", tmp_path / "two" / "photos", "--name", "second", workspace=workspace)
    replaced = succeed(*folder, "--root", tmp_path / "two" / "photos", "--name", "photos", workspace=workspace)
    assert f"was prepared from {tmp_path}/one/photos; it is now replaced by one from {tmp_path}/two" in replaced.stderr
    assert (workspace / "current").read_text() == "photos\n"
    for name in ("../x", "galleries", "a/b", "", "."):
        assert (
            "--name" in dpce(*folder, "--root", tmp_path / "one" / "photos", "--name", name, workspace=workspace).error
        )


@pytest.mark.parametrize("content", ['{"name": "photos", "root": "/elsewhere"}', "{", "", "[]", '{"root": "\\u0000"}'])
def test_a_data_set_that_is_damaged_or_of_another_version_is_not_replaced_silently(
    tmp_path: Path, content: str
) -> None:
    root, workspace = _folder(tmp_path / "photos", "image,caption\na.png,a dog\n"), tmp_path / "w"
    arguments = ("prepare-vocab", "folder", "--root", str(root), *TINY)
    path = workspace / "photos" / "dataset.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    error = dpce(*arguments, workspace=workspace).error
    assert f"data set 'photos' in {workspace} was prepared from " in error
    assert f"not from {root}; choose another --name, or replace it with --name photos" in error
    assert path.read_text() == content
    succeed(*arguments, "--name", "photos", workspace=workspace)


@pytest.mark.parametrize("name", ["scenes", "coco"])
def test_a_folder_does_not_take_the_name_of_a_published_data_set(tmp_path: Path, name: str) -> None:
    root = _folder(tmp_path / name, "image,caption\na.png,a dog\n")
    error = dpce("prepare-vocab", "folder", "--root", root, workspace=tmp_path / "w").error
    assert error == f"Error: {name!r} is the name of a published data set; choose another one with --name"


def _pictures(workspace: Path, name: str) -> dict[str, bytes]:
    root = Path(json.loads((workspace / name / "dataset.json").read_text())["root"])
    return {path.name: path.read_bytes() for path in root.rglob("*.png")}


def test_each_data_set_has_its_own_pictures(tmp_path: Path) -> None:
    succeed(*SCENES, workspace=tmp_path)
    before = _pictures(tmp_path, "scenes")
    succeed(*SCENES, "--name", "two", "--seed", "7", workspace=tmp_path)
    assert _pictures(tmp_path, "scenes") == before
    assert _pictures(tmp_path, "two") != before


def test_pictures_stay_until_the_new_data_set_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    succeed(*SCENES, workspace=tmp_path)
    before, replace = _pictures(tmp_path, "scenes"), os.replace

    def fail(source: Path, target: Path) -> None:
        if target.name == "000003.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        assert "No space left" in dpce(*SCENES, "--seed", "7", workspace=tmp_path).error
    assert _pictures(tmp_path, "scenes") == before
    assert Workspace(tmp_path).load_dataset().split("train")
    succeed(*SCENES, "--seed", "7", workspace=tmp_path)
    assert len(list((tmp_path / "scenes").glob("photos-*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("coco", "--captions", "x.csv"), "--captions"),
        (("scenes", "--splits", "paper"), "--splits"),
        (("flickr30k", "--val-fraction", "0.2"), "--val-fraction"),
        (("webdataset", "--caption-column", "x"), "--caption-column"),
        (("scenes",), "--root"),
    ],
)
def test_options_that_do_not_apply_are_refused(tmp_path: Path, arguments: tuple[str, ...], option: str) -> None:
    outcome = dpce("prepare-vocab", *arguments, "--root", tmp_path, workspace=tmp_path)
    assert outcome.code == 2
    assert f"{option}" in outcome.stderr
    assert "does not apply" in outcome.stderr
