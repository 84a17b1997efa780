from __future__ import annotations

from pathlib import Path

import pytest

from dpce_cli.core.data.readers.flickr30k import read_flickr30k
from dpce_cli.core.data.splits import split_ids
from dpce_cli.core.errors import DataError
from dpce_cli.core.storage.files import write_json
from tests.layouts import make_flickr30k, texts

SPLITS = {1: "train", 2: "train", 3: "train", 4: "train", 6: "val", 7: "val", 8: "test", 9: "test"}


@pytest.mark.parametrize("photos", ["flickr30k-images", "flickr30k_images"])
@pytest.mark.parametrize("captions", ["karpathy", "results_20130124.token", "results.csv"])
def test_every_published_form_of_captions_is_read(tmp_path: Path, photos: str, captions: str) -> None:
    root = make_flickr30k(tmp_path, photos)
    for name in {"dataset_flickr30k.json", "results_20130124.token", "results.csv"} - {captions}:
        if captions != "karpathy" or name != "dataset_flickr30k.json":
            (root / name).unlink()
    data = read_flickr30k(root, splits="karpathy" if captions == "karpathy" else "paper")
    assert (data.name, data.skipped) == ("flickr30k", ())
    assert {image.image_id: image.split for image in data.images} == {f"{n}.jpg": SPLITS[n] for n in SPLITS}
    assert [image.path for image in data.images] == [f"{photos}/{n}.jpg" for n in SPLITS]
    assert [list(image.captions) for image in data.images] == [texts(n) for n in SPLITS]


def test_the_row_of_the_table_that_lacks_its_second_bar_is_read(tmp_path: Path) -> None:
    root = make_flickr30k(tmp_path)
    (root / "results_20130124.token").unlink()
    (root / "flickr30k-images" / "2199200615.jpg").touch()
    with open(root / "results.csv", "a") as file:
        file.write("2199200615.jpg| 3| 4 dogs | one cat .\n2199200615.jpg| 4   A dog runs across the grass .\n")
    data = read_flickr30k(root, splits="paper")
    assert data.images[-1].captions == ("4 dogs | one cat .", "A dog runs across the grass .")


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    root = make_flickr30k(tmp_path)
    tokens = root / "results_20130124.token"
    tokens.write_text(tokens.read_text() + "1.jpg#0\tCaption 0 of 1 .\n404.jpg#0\tGone .\n9.jpg#2\t\n")
    (root / "flickr30k-images" / "mute.jpg").touch()
    (root / "Flickr_8k.devImages.txt").write_text("6_a.jpg\n7_b.jpg\n555_c.jpg\n")
    data = read_flickr30k(root, splits="paper")
    assert len(data.images) == 8
    assert data.skipped == (
        f"repeated captions: 1 (first: {tokens}:17)",
        "images of Flickr_8k.devImages.txt without captions: 1 (first: 555_c.jpg)",
        "photos that are not in flickr30k-images: 1 (first: flickr30k-images/404.jpg)",
        f"empty captions: 1 (first: {tokens}:15)",
    )


def test_splits_can_be_saved_and_used_again(tmp_path: Path) -> None:
    root = make_flickr30k(tmp_path / "flickr30k")
    data = read_flickr30k(root, splits="paper")
    write_json(tmp_path / "splits.json", split_ids(data.images))
    for name in ("Flickr_8k.devImages.txt", "dataset_flickr30k.json"):
        (root / name).unlink()
    assert read_flickr30k(root, splits=str(tmp_path / "splits.json")) == data


def test_an_image_of_both_lists_is_a_data_error(tmp_path: Path) -> None:
    root = make_flickr30k(tmp_path)
    (root / "Flickr_8k.testImages.txt").write_text("8_a.jpg\n6_b.jpg\n")
    with pytest.raises(DataError, match=r"testImages\.txt:2: '6_b\.jpg' is in the val split too"):
        read_flickr30k(root, splits="paper")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("results_20130124.token", "1.jpg A dog .", r"token:17: expected name\.jpg#number, a tab and a caption"),
        ("results_20130124.token", "../1.jpg#0\tA dog .", r"token:17: .* is not a path below"),
        ("results.csv", "1.jpg, 0, A dog .", r"csv:18: expected name\.jpg\| number\| caption"),
        ("results.csv", "image_name| comment_number| comment", r"csv:18: expected"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, name: str, line: str, message: str) -> None:
    root = make_flickr30k(tmp_path)
    other = {"results_20130124.token", "results.csv"} - {name}
    (root / other.pop()).unlink()
    with open(root / name, "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        read_flickr30k(root, splits="paper")


def test_karpathys_file_of_another_data_set_is_refused(tmp_path: Path) -> None:
    root = make_flickr30k(tmp_path)
    path = root / "dataset_flickr30k.json"
    path.write_text(path.read_text().replace('"flickr30k"', '"flickr8k"'))
    with pytest.raises(DataError, match="holds the splits of 'flickr8k', not of 'flickr30k'"):
        read_flickr30k(root, splits="karpathy")


@pytest.mark.parametrize(
    ("splits", "missing", "expected"),
    [
        ("karpathy", "dataset_flickr30k.json", "dataset_flickr30k.json is in caption_datasets.zip"),
        ("karpathy", "flickr30k-images", "expected a folder flickr30k-images or flickr30k_images"),
        ("paper", "Flickr_8k.testImages.txt", "Flickr_8k.devImages.txt and Flickr_8k.testImages.txt for the paper's"),
        ("paper", "Flickr_8k.devImages.txt", "the lists are in Flickr8k_text.zip"),
        ("x.json", "flickr30k-images", "results_20130124.token or results.csv; found"),
    ],
)
def test_an_incomplete_folder_says_what_is_expected_what_is_there_and_where_to_get_it(
    tmp_path: Path, splits: str, missing: str, expected: str
) -> None:
    root = make_flickr30k(tmp_path)
    (root / missing).rename(root / "zzz")
    with pytest.raises(DataError) as caught:
        read_flickr30k(root, splits=splits)
    assert expected in str(caught.value)
    assert "zzz" in str(caught.value)
    assert "shannon.cs.illinois.edu/DenotationGraph" in str(caught.value)
