from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.readers.flickr8k import read_flickr8k
from dpce_cli.core.errors import DataError

NAMES = {"train": ["1.jpg", "2.jpg"], "val": ["3.jpg"], "test": ["4.jpg"], "no": ["5.jpg"]}
FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def make(root: Path, *, photos: str = "Flicker8k_Dataset", texts: str = ".", test: bool = True) -> Path:
    (root / photos).mkdir(parents=True)
    (root / texts).mkdir(exist_ok=True)
    names = [name for group in NAMES.values() for name in group]
    for name in names:
        (root / photos / name).touch()
    tokens = [f"{name}#{k}\tCaption {k} of {name} .\n" for name in names for k in range(5)]
    (root / texts / "Flickr8k.token.txt").write_text("".join(tokens))
    for split, file_name in FILES.items():
        if test or split != "test":
            (root / texts / file_name).write_text("\n".join(NAMES[split]) + "\n")
    return root


def add(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize("photos", ["Flicker8k_Dataset", "Flickr8k_Dataset", "Images"])
@pytest.mark.parametrize("texts", [".", "Flickr8k_text"])
def test_the_official_layouts_are_read(tmp_path: Path, photos: str, texts: str) -> None:
    data = read_flickr8k(make(tmp_path, photos=photos, texts=texts))
    assert (data.name, data.root) == ("flickr8k", tmp_path)
    assert [(image.image_id, image.split) for image in data.images] == [
        ("1.jpg", "train"),
        ("2.jpg", "train"),
        ("3.jpg", "val"),
        ("4.jpg", "test"),
    ]
    assert data.images[0].path == f"{photos}/1.jpg"
    assert data.images[0].captions == tuple(f"Caption {k} of 1.jpg ." for k in range(5))
    assert data.skipped == ("images in no split: 1 (first: 5.jpg)",)


def test_without_a_list_of_test_images_there_is_no_test_split(tmp_path: Path) -> None:
    data = read_flickr8k(make(tmp_path, test=False))
    assert {image.split for image in data.images} == {"train", "val"}
    assert data.skipped == ("images in no split: 2 (first: 4.jpg, 5.jpg)",)


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    root = make(tmp_path)
    add(root / FILES["train"], "gone.jpg\nmute.jpg\n")
    (root / "Flicker8k_Dataset" / "mute.jpg").touch()
    add(
        root / "Flickr8k.token.txt",
        "2258277193_586949ec62.jpg.1#0\tA quirk of the official file .\n"
        "1.jpg#5\t \n1.jpg#6\n1.jpg#0\tCaption 0 of 1.jpg .\n1.jpg#7\tCaption 0 of 1.jpg .\n",
    )
    data = read_flickr8k(root)
    assert len(data.images) == 4
    assert len(data.images[0].captions) == 6
    tokens = root / "Flickr8k.token.txt"
    assert data.skipped == (
        "captions whose image is not in Flicker8k_Dataset: 1 (first: 2258277193_586949ec62.jpg.1)",
        f"empty captions: 2 (first: {tokens}:27, {tokens}:28)",
        f"repeated captions: 1 (first: {tokens}:29)",
        "images without a caption: 1 (first: mute.jpg)",
        "images of a split that are not in Flicker8k_Dataset: 1 (first: gone.jpg)",
        "images in no split: 1 (first: 5.jpg)",
    )


@pytest.mark.parametrize("missing", ["Flicker8k_Dataset", "Flickr8k.token.txt", FILES["train"], FILES["val"]])
def test_another_layout_says_what_is_expected_what_is_there_and_where_to_get_it(tmp_path: Path, missing: str) -> None:
    root = make(tmp_path)
    (root / missing).rename(root / "zzz")
    with pytest.raises(DataError) as caught:
        read_flickr8k(root)
    message = str(caught.value)
    assert "expected a folder Flicker8k_Dataset or" in message
    assert "found Flick" in message
    assert "zzz" in message
    assert "Framing Image Description as a Ranking Task" in message


def test_an_empty_and_a_missing_root_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing"):
        read_flickr8k(tmp_path)
    with pytest.raises(DataError, match=r"none: cannot be listed \(No such file"):
        read_flickr8k(tmp_path / "none")


@pytest.mark.parametrize("line", ["1.jpg A caption .", "1.jpg#\tx", "1.jpg#one\tx", "1.jpg\tx#1"])
def test_a_malformed_token_line_is_named(tmp_path: Path, line: str) -> None:
    root = make(tmp_path)
    add(root / "Flickr8k.token.txt", line + "\n")
    with pytest.raises(DataError, match=r"Flickr8k\.token\.txt:26: expected name\.jpg#number"):
        read_flickr8k(root)


@pytest.mark.parametrize("name", ["../1.jpg", "/1.jpg"])
def test_unsafe_paths_are_refused_in_either_kind_of_file(tmp_path: Path, name: str) -> None:
    root = make(tmp_path)
    add(root / FILES["val"], name + "\n")
    with pytest.raises(DataError, match=r"devImages\.txt:2: .* is not a path below"):
        read_flickr8k(root)
    add(root / "Flickr8k.token.txt", f"{name}#0\tx\n")
    with pytest.raises(DataError, match=r"token\.txt:26: .* is not a path below"):
        read_flickr8k(root)


def test_photos_behind_a_link_out_of_the_root_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "root")
    (root / "Flicker8k_Dataset").rename(tmp_path / "elsewhere")
    (root / "Flicker8k_Dataset").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="Flicker8k_Dataset: a link that leads out"):
        read_flickr8k(root)


@pytest.mark.parametrize("blank", [" ", "\t"])
def test_chinese_captions_name_photos_without_their_ending(tmp_path: Path, blank: str) -> None:
    root, captions = make(tmp_path / "root"), tmp_path / "flickr8kzhc.caption.txt"
    lines = [f"{number}#{kind}#0{blank}一只狗 在跑" for number, kind in ((1, "zhb"), (3, "zhm"), (4, "zhm"))]
    captions.write_text("\n".join(lines))
    data = read_flickr8k(root, captions=captions)
    assert [(image.image_id, image.split, image.captions) for image in data.images] == [
        (f"{number}.jpg", split, ("一只狗 在跑",)) for number, split in ((1, "train"), (3, "val"), (4, "test"))
    ]


def test_an_image_in_two_splits_is_a_data_error(tmp_path: Path) -> None:
    root = make(tmp_path)
    add(root / FILES["val"], "1.jpg\n")
    with pytest.raises(DataError, match=r"devImages\.txt:2: 1\.jpg is in the train split too"):
        read_flickr8k(root)


def test_no_photo_at_all_is_a_data_error(tmp_path: Path) -> None:
    root = make(tmp_path)
    for photo in (root / "Flicker8k_Dataset").iterdir():
        photo.unlink()
    with pytest.raises(DataError, match="no image with a caption is left to read"):
        read_flickr8k(root)


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "Flickr8k.token.txt").write_bytes(b"1.jpg#0\tok\n1.jpg#1\tcaf\xe9\n")
    with pytest.raises(DataError, match=r"token\.txt:2: not UTF-8"):
        read_flickr8k(root)


@given(st.binary(), st.binary())
@example(b"1.jpg#0\tA dog .\n", b"1.jpg\n")
def test_whatever_bytes_the_files_hold_nothing_but_a_data_error_arises(tokens: bytes, val: bytes) -> None:
    with TemporaryDirectory() as folder:
        root = make(Path(folder) / "root")
        (root / "Flickr8k.token.txt").write_bytes(tokens)
        (root / FILES["val"]).write_bytes(val)
        try:
            data = read_flickr8k(root)
        except DataError:
            return
        assert all(image.captions for image in data.images)


def test_the_real_flickr8k_is_read_whole(shared_data: Path) -> None:
    data = read_flickr8k(shared_data / "flickr8k")
    assert Counter(image.split for image in data.images) == {"train": 6000, "val": 1000}
    assert {len(image.captions) for image in data.images} == {5}
    assert data.skipped == (
        "images in no split: 91 "
        "(first: 1155138244_859fd6e079.jpg, 1468103286_96a6e07029.jpg, 1479857177_9d4a6f38fd.jpg)",
    )
    for image in data.images[::2000]:
        assert load_image(data.root / image.path).size == (224, 224)
