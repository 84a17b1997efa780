from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpce_cli.core.config import ImageConfig
from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.readers.webdataset import read_webdataset
from dpce_cli.core.data.records import CaptionedImage, CaptionedImages
from dpce_cli.core.data.resizing import resize_images
from dpce_cli.core.data.views import FixedViews
from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.presets import build_preset
from dpce_cli.core.progress import Reporter
from tests.tars import write_tar

SIZES = {"wide.jpg": (300, 100), "sub/tall.png": (90, 200), "small.jpeg": (30, 50), "square.gif": (64, 64)}


def config(*settings: str) -> ImageConfig:
    return build_preset("scenes").with_settings(["image.resize=40", "image.crop=32", *settings]).image


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / width * 7 + k) + np.cos(y / height * 5 - k) for k in range(3)]
    return Image.fromarray((np.stack(waves, axis=2) * 60 + 128).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> CaptionedImages:
    images = []
    for name, size in SIZES.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(*size).save(path)
        images.append(CaptionedImage(image_id=name, path=name, split="train", captions=("a wave",)))
    return CaptionedImages(name="waves", root=tmp_path / "photos", images=tuple(images), skipped=("ghosts: 1",))


def kinds(data: CaptionedImages) -> dict[str, tuple[tuple[int, int], str | None]]:
    found = {}
    for name in SIZES:
        with Image.open(data.root / name) as image:
            found[name] = (image.size, image.format)
    return found


def resize(
    photos: CaptionedImages, folder: Path, *settings: str, workers: int = 0, reporter: Reporter | None = None
) -> CaptionedImages:
    return resize_images(photos, folder, config(*settings), workers=workers, reporter=reporter or Reporter())


@pytest.mark.parametrize("workers", [0, 2])
def test_photos_keep_their_shape_at_the_short_side_and_small_ones_are_copied(
    photos: CaptionedImages, tmp_path: Path, workers: int
) -> None:
    small = resize(photos, tmp_path / "images", workers=workers)
    assert small == replace(photos, root=small.root, source=photos.root)
    assert small.root.parent == tmp_path / "images"
    assert kinds(small) == {
        "wide.jpg": ((120, 40), "JPEG"),
        "sub/tall.png": ((40, 89), "PNG"),
        "small.jpeg": ((30, 50), "JPEG"),
        "square.gif": ((40, 40), "PNG"),
    }
    assert (small.root / "small.jpeg").read_bytes() == (photos.root / "small.jpeg").read_bytes()


def test_photos_are_squashed_if_the_preset_says_so(photos: CaptionedImages, tmp_path: Path) -> None:
    small = resize(photos, tmp_path / "images", "image.squash=true")
    assert {size for size, _ in kinds(small).values()} == {(40, 40)}


@pytest.mark.parametrize("squash", ["true", "false"])
@pytest.mark.parametrize("name", SIZES)
def test_views_of_a_resized_photo_are_nearly_the_same(
    photos: CaptionedImages, tmp_path: Path, name: str, squash: str
) -> None:
    small = resize(photos, tmp_path / "images", f"image.squash={squash}")
    view = FixedViews(config(f"image.squash={squash}"))
    before, after = (view(load_image(data.root / name), 0).float() for data in (photos, small))
    assert (before - after).abs().mean() < 3


def test_only_photos_that_are_missing_or_were_replaced_are_resized_again(
    photos: CaptionedImages, tmp_path: Path
) -> None:
    folder = resize(photos, tmp_path).root
    for name in SIZES:
        (folder / name).write_text("kept")
    (folder / "wide.jpg").unlink()
    os.utime(photos.root / "small.jpeg")  # newer, with the same content
    smooth(63, 64).save(photos.root / "square.gif")
    os.utime(photos.root / "square.gif", (1, 1))  # replaced by an older file
    assert resize(photos, tmp_path).root == folder
    kept = {name for name in SIZES if (folder / name).read_bytes() == b"kept"}
    assert kept == {"sub/tall.png", "small.jpeg"}
    assert load_image(folder / "square.gif").size == (40, 41)
    larger = resize(photos, tmp_path, "image.resize=50").root
    assert load_image(larger / "sub/tall.png").size == (50, 111)
    assert (folder / "small.jpeg").read_bytes() == b"kept"


def test_photos_in_shards_become_the_same_files_as_loose_photos(photos: CaptionedImages, tmp_path: Path) -> None:
    expected = resize(photos, tmp_path / "expected")
    root = tmp_path / "shards"
    contents = {name: (photos.root / name).read_bytes() for name in SIZES}
    captions = [(name.rpartition(".")[0] + ".txt", b"a wave") for name in SIZES]
    write_tar(root / "train-0.tar", sorted([*contents.items(), *captions]))
    stored = read_webdataset(root, val_fraction=0, test_fraction=0, seed=0, reporter=Reporter())
    small = resize(stored, tmp_path / "images")
    assert {image.extent for image in small.images} == {None}
    for image in small.images:
        name = image.path.removeprefix("train-0.tar/")
        assert (small.root / image.path).read_bytes() == (expected.root / name).read_bytes()
    for name in SIZES:
        (small.root / "train-0.tar" / name).write_text("kept")
    contents["wide.jpg"] = (photos.root / "sub/tall.png").read_bytes()
    write_tar(root / "train-0.tar", sorted([*contents.items(), *captions]))
    again = read_webdataset(root, val_fraction=0, test_fraction=0, seed=0, reporter=Reporter())
    resize(again, tmp_path / "images")
    kept = {name for name in SIZES if (small.root / "train-0.tar" / name).read_bytes() == b"kept"}
    assert kept == {*SIZES} - {"wide.jpg"}


@pytest.mark.parametrize("damage", ["cut", "foreign", "nested"])
def test_copies_that_a_damaged_list_leaves_out_are_made_again(
    photos: CaptionedImages, tmp_path: Path, damage: str
) -> None:
    folder = resize(photos, tmp_path).root
    path = folder / "copied.jsonl"
    line = path.read_text().splitlines()[1]
    path.write_text(
        {"cut": line[:-9], "foreign": '\n3\n{}\n["a"]\n[[], 1]\n\udcff', "nested": "[" * 10_000}[damage],
        errors="surrogateescape",
    )
    for name in SIZES:
        (folder / name).write_text("stale")
    resize(photos, tmp_path)
    assert all((folder / name).read_bytes() != b"stale" for name in SIZES)
    for name in SIZES:
        (folder / name).write_text("kept")
    resize(photos, tmp_path)
    assert all((folder / name).read_bytes() == b"kept" for name in SIZES)


def test_photos_that_cannot_be_read_are_left_out_and_counted(photos: CaptionedImages, tmp_path: Path) -> None:
    (photos.root / "wide.jpg").write_bytes(b"no photo")
    (photos.root / "square.gif").unlink()
    small = resize(photos, tmp_path / "images")
    assert [image.path for image in small.images] == ["sub/tall.png", "small.jpeg"]
    assert small.skipped[0] == "ghosts: 1"
    assert small.skipped[1].startswith("photos that cannot be read: 2 (first: ")
    assert f"{photos.root / 'square.gif'}: cannot be read (No such file or directory)" in small.skipped[1]
    assert not (small.root / "wide.jpg").exists()


def test_without_a_readable_photo_there_is_no_data_set(photos: CaptionedImages, tmp_path: Path) -> None:
    for name in SIZES:
        (photos.root / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"photos: none of the photos can be read; put them there"):
        resize(photos, tmp_path / "images")


def test_a_full_disk_is_an_error_that_leaves_no_half_written_photo(
    photos: CaptionedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, move = tmp_path / "images", os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "tall.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(WorkspaceError, match=r"photos-\w+: cannot be written \(No space left on device\); free"):
            resize(photos, folder)
    assert [list(path.iterdir()) for path in folder.glob("photos-*/sub")] == [[]]
    assert len(resize(photos, folder).images) == 4
