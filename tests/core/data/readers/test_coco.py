from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dpce_cli.core.data.readers.coco import read_coco
from dpce_cli.core.data.records import CaptionedImages
from dpce_cli.core.data.splits import split_ids
from dpce_cli.core.errors import DataError
from dpce_cli.core.storage.files import write_json
from tests.layouts import coco_name, make_coco, numbered, texts


def read(root: Path, splits: str = "karpathy", seed: int = 0) -> CaptionedImages:
    return read_coco(root, splits=splits, seed=seed, drawn=2)


def change(path: Path, **values: Any) -> None:
    """Replace values of the first image of a Karpathy file."""
    data = json.loads(path.read_text())
    data["images"][0].update(values)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_karpathys_file_gives_captions_and_splits_in_its_order_for_either_years_photos(
    tmp_path: Path, year: str
) -> None:
    data = read(make_coco(tmp_path, year))
    assert (data.name, data.root, data.skipped) == ("coco", tmp_path, ())
    assert [(image.image_id, image.split) for image in data.images] == [
        (str(number), split.replace("restval", "train")) for number, split in numbered()
    ]
    assert [image.path for image in data.images] == [coco_name(number, split, year) for number, split in numbered()]
    assert [list(image.captions) for image in data.images] == [texts(number) for number, _ in numbered()]
    assert {image.identity for image in data.images} == {None}


def test_photos_of_2017_may_lie_in_the_other_folder_than_in_2014(tmp_path: Path) -> None:
    root = make_coco(tmp_path, "2017")
    (root / "val2017" / f"{6:012}.jpg").rename(root / "train2017" / f"{6:012}.jpg")
    assert read(root).images[5].path == f"train2017/{6:012}.jpg"


def test_a_photo_that_lies_in_both_folders_is_taken_from_where_it_is_listed(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    before = read(root).images
    for image in before:
        part, name = image.path.split("/")
        (root / ("val2014" if part == "train2014" else "train2014") / name).touch()
    assert read(root).images == before


def test_of_two_years_photos_those_with_annotations_are_taken(tmp_path: Path) -> None:
    make_coco(tmp_path, "2017")
    for part in ("train", "val"):
        (tmp_path / f"{part}2014").mkdir()
    assert {image.path.partition("/")[0] for image in read(tmp_path, "paper").images} <= {"train2017", "val2017"}


def test_karpathys_file_may_lie_beside_the_annotations_which_it_does_not_need(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    for path in (root / "annotations").iterdir():
        path.unlink()
    (root / "dataset_coco.json").rename(root / "annotations" / "dataset_coco.json")
    assert len(read(root).images) == 9


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_the_papers_splits_are_drawn_from_the_official_annotations(tmp_path: Path, year: str) -> None:
    root = make_coco(tmp_path, year)
    (root / "dataset_coco.json").unlink()
    data = read(root, "paper")
    assert Counter(image.split for image in data.images) == {"train": 5, "val": 2, "test": 2}
    assert [list(image.captions) for image in data.images] == [texts(number) for number, _ in numbered()]
    assert [image.path for image in data.images] == [coco_name(number, split, year) for number, split in numbered()]


def test_the_seed_decides_the_papers_splits(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    assert read(root, "paper", seed=1) == read(root, "paper", seed=1)
    assert any(read(root, "paper", seed=1) != read(root, "paper", seed=seed) for seed in range(2, 6))


def test_a_missing_photo_changes_nothing_about_the_others_splits(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    before = read(root, "paper").images
    (root / before[3].path).unlink()
    assert read(root, "paper").images == before[:3] + before[4:]


def test_splits_can_be_saved_and_used_again(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "coco")
    data = read(root, "paper", seed=3)
    write_json(tmp_path / "splits.json", split_ids(data.images))
    assert read(root, str(tmp_path / "splits.json")) == data


def test_images_in_no_split_of_a_file_are_left_out(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "coco")
    (tmp_path / "mine.json").write_text('{"train": ["1", "2"], "val": [], "test": ["9", "404"]}')
    data = read(root, str(tmp_path / "mine.json"))
    assert [image.image_id for image in data.images] == ["1", "2", "9"]
    assert data.skipped == (
        "images in no split: 6 (first: 3, 4, 5)",
        "ids in a split that no image has: 1 (first: 404)",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train": ["1"], "val": ["1"], "test": []}', r"mine\.json: '1' is in train and in val; choose one"),
        ('{"train": ["1"], "val": [2], "test": []}', r"mine\.json: 'val' holds something that is not text"),
        ('{"train": ["1"]}', r"mine\.json: needs a list 'val'"),
        ("[", r"mine\.json:1: incomplete or damaged JSON"),
        (None, r"mine\.json: cannot be read \(No such file"),
    ],
)
def test_a_faulty_splits_file_is_a_data_error(tmp_path: Path, text: str | None, message: str) -> None:
    root = make_coco(tmp_path / "coco")
    if text:
        (tmp_path / "mine.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read(root, str(tmp_path / "mine.json"))


def test_too_few_images_for_the_papers_splits_are_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hold 9 images; --splits paper draws 5,000 for val and 5,000 for test"):
        read_coco(make_coco(tmp_path), splits="paper", seed=0)


def test_missing_photos_are_counted_in_one_line_per_kind(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    paths = [root / coco_name(number, split) for number, split in numbered()]
    paths[0].unlink()
    (root / "val2014" / "sub").mkdir()
    paths[5].rename(paths[5].parent / "sub" / paths[5].name)
    paths[6].rename(paths[6].with_suffix(".png"))
    data = read(root)
    assert len(data.images) == 6
    assert data.skipped == (
        "photos that are not in train2014 or val2014: 1 (first: train2014/COCO_train2014_000000000001.jpg)",
        "photos in another folder or of another extension than listed: 2 (first: "
        "val2014/COCO_val2014_000000000006.jpg as val2014/sub/COCO_val2014_000000000006.jpg, "
        "val2014/COCO_val2014_000000000007.jpg as val2014/COCO_val2014_000000000007.png)",
    )


def test_sentences_of_karpathys_file_that_are_no_text_are_counted(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    path = root / "dataset_coco.json"
    data = json.loads(path.read_text())
    data["images"][0]["sentences"] += [{"raw": None}, {"tokens": []}, "A dog ."]
    path.write_text(json.dumps(data))
    read_again = read(root, "karpathy")
    assert len(read_again.images) == len(data["images"])
    assert read_again.skipped[0].startswith("captions that are no text: 3 (first: ")


def test_captions_of_unlisted_images_and_what_is_listed_twice_are_counted(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    path = root / "annotations" / "captions_train2014.json"
    data = json.loads(path.read_text())
    data["images"].append(data["images"][0])
    data["annotations"] += [
        {"id": 98, "image_id": 77, "caption": "A ghost ."},
        {"id": 99, "image_id": 1, "caption": " "},
        {"id": 97, "image_id": 1, "caption": None},
        {"id": 10, "image_id": 1, "caption": "Caption 0 of 1 ."},
    ]
    path.write_text(json.dumps(data))
    read_again = read(root, "paper")
    assert [list(image.captions) for image in read_again.images] == [texts(number) for number, _ in numbered()]
    index = len(data["annotations"]) - 2
    assert read_again.skipped == (
        f"captions that are no text: 1 (first: {path}: annotations[{index}] (null))",
        "captions of captions_train2014.json with the id of another: 1 (first: 10)",
        "images with captions that captions_train2014.json does not list: 1 (first: 77)",
        "images listed twice: 1 (first: train2014/COCO_train2014_000000000001.jpg)",
        f"empty captions: 1 (first: {path}: images[0])",
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "dev"}, r"images\[0\]: unknown split 'dev'"),
        ({"split": None}, r"images\[0\]: needs a text 'split'"),
        ({"cocoid": "1"}, r"images\[0\]: needs a whole number 'cocoid'"),
        ({"cocoid": True}, r"images\[0\]: needs a whole number 'cocoid'"),
        ({"cocoid": 2}, r"images\[1\]: id 2 is of 'train2014/.*1\.jpg' and of 'train2014/.*2\.jpg'"),
        ({"sentences": "A dog ."}, r"images\[0\]: needs a list 'sentences'"),
        ({"sentences": [{"raw": "\ud800"}]}, r"images\[0\]: .* is not Unicode text"),
        ({"filepath": "..", "filename": "x.jpg"}, r"images\[0\]: '../x.jpg' is not a path below"),
        ({"filepath": "", "filename": "etc/x.jpg"}, r"images\[0\]: '/etc/x.jpg' is not a path below"),
        (
            {"filename": "COCO_val2014_000000000008.jpg", "filepath": "val2014", "cocoid": 8},
            r"images\[7\]: 'val2014/COCO_val2014_000000000008.jpg' is listed with split test and, at .*images\[0\], "
            "with train",
        ),
    ],
)
def test_a_faulty_image_of_karpathys_file_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    root = make_coco(tmp_path)
    change(root / "dataset_coco.json", **values)
    with pytest.raises(DataError, match=message):
        read(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"dataset": "flickr8k", "images": []}',
            "holds the splits of 'flickr8k', not of 'coco'; dataset_coco.json is in caption_",
        ),
        ('{"dataset": 1, "images": []}', "holds the splits of 1, not of 'coco'"),
        ('{"images": []}', "no image with a caption is left to read"),
        ("[]", "needs a list 'images'"),
        ('{"dataset": "coco", "images": [3]}', r"images\[0\]: needs a text 'split'"),
        ('{"dataset": "coco", "images": []}', "no image with a caption is left to read"),
        (
            '{"dataset": "coco",\n "images": [{"fil',
            r"dataset_coco\.json:2: incomplete or damaged JSON .*; fix the",
        ),
        ("[" * 100_000, "not usable JSON"),
    ],
)
def test_another_file_than_karpathys_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = make_coco(tmp_path)
    (root / "dataset_coco.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read(root)


@pytest.mark.parametrize(
    ("splits", "missing"),
    [
        ("karpathy", "dataset_coco.json"),
        ("karpathy", "val2014"),
        ("paper", "train2014"),
        ("paper", "annotations"),
    ],
)
def test_an_incomplete_folder_says_what_is_expected_what_is_there_and_where_to_get_it(
    tmp_path: Path, splits: str, missing: str
) -> None:
    root = make_coco(tmp_path)
    (root / missing).rename(root / "zzz")
    with pytest.raises(DataError) as caught:
        read(root, splits)
    message = str(caught.value)
    assert "expected the folders train2014 and val2014 of photos, " in message
    assert " of 2017" in message
    assert "zzz; " in message
    assert "cocodataset.org" in message
    assert ("dataset_coco.json is in caption_datasets.zip" in message) == (splits == "karpathy")
    assert ("captions_val2014.json" in message.partition("found")[0]) == (splits == "paper")


def test_a_missing_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: cannot be listed \(No such file"):
        read(tmp_path / "none")
