from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpce_cli.core.data.readers.cuhk_pedes import read_cuhk_pedes, read_icfg_pedes, read_rstp_reid
from dpce_cli.core.data.records import SPLITS
from dpce_cli.core.errors import DataError
from tests.layouts import make_cuhk_pedes, texts


def change(root: Path, index: int, **values: Any) -> None:
    records = json.loads((root / "reid_raw.json").read_text())
    records[index].update(values)
    (root / "reid_raw.json").write_text(json.dumps(records))


def test_photos_have_their_persons_as_identities(tmp_path: Path) -> None:
    data = read_cuhk_pedes(make_cuhk_pedes(tmp_path))
    assert (data.name, data.root, data.skipped) == ("cuhk-pedes", tmp_path, ())
    assert [(image.identity, image.split) for image in data.images[::2]] == [
        *((str(person), "train") for person in (1, 2, 3, 4)),
        *((str(person), "val") for person in (5, 6)),
        *((str(person), "test") for person in (7, 8)),
    ]
    assert [image.identity for image in data.images[::2]] == [image.identity for image in data.images[1::2]]
    last = data.images[-1]
    assert (last.image_id, last.path) == ("CUHK02/0008.png", "imgs/CUHK02/0008.png")
    assert list(last.captions) == texts(82)


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    root = make_cuhk_pedes(tmp_path)
    (root / "imgs" / "CUHK01" / "0001.png").unlink()
    change(root, 2, file_path="/etc/passwd.png")
    change(root, 4, captions=["", "  "])
    change(root, 9, captions=["A man .", None])
    change(root, 7, file_path="CUHK01/0004.png")
    data = read_cuhk_pedes(root)
    assert len(data.images) == 12
    assert data.skipped == (
        f"captions that are no text: 1 (first: {root / 'reid_raw.json'}: [9] (null))",
        "images listed twice: 1 (first: imgs/CUHK01/0004.png)",
        "photos that are not in imgs: 2 (first: imgs/CUHK01/0001.png, imgs/etc/passwd.png)",
        f"empty captions: 2 (first: {root / 'reid_raw.json'}: [4], {root / 'reid_raw.json'}: [4])",
        "images without a caption: 1 (first: imgs/CUHK01/0003.png)",
    )


@pytest.mark.parametrize(
    ("index", "values", "message"),
    [
        (0, {"id": "1"}, r"\[0\]: needs a whole number 'id'"),
        (0, {"split": "all"}, r"\[0\]: unknown split 'all'"),
        (0, {"captions": "A man ."}, r"\[0\]: needs a list 'captions'"),
        (0, {"file_path": "../../x.png"}, r"\[0\]: 'imgs/\.\./\.\./x\.png' is not a path below"),
        (0, {"split": "test"}, r"\[1\]: identity 1 is of 'test' and of 'train'"),
        (2, {"file_path": "CUHK01/0001.png"}, r"\[2\]: 'imgs/CUHK01/0001.png' is listed with identity 2 and, at .*"),
    ],
)
def test_a_faulty_record_is_named(tmp_path: Path, index: int, values: dict[str, Any], message: str) -> None:
    root = make_cuhk_pedes(tmp_path)
    change(root, index, **values)
    with pytest.raises(DataError, match=message):
        read_cuhk_pedes(root)


def test_an_object_in_the_place_of_the_list_is_refused(tmp_path: Path) -> None:
    root = make_cuhk_pedes(tmp_path)
    (root / "reid_raw.json").write_text("{}")
    with pytest.raises(DataError, match=r"reid_raw\.json: is no list of photos"):
        read_cuhk_pedes(root)


@pytest.mark.parametrize("missing", ["imgs", "reid_raw.json"])
def test_an_incomplete_folder_says_what_is_expected_what_is_there_and_where_to_get_it(
    tmp_path: Path, missing: str
) -> None:
    root = make_cuhk_pedes(tmp_path)
    (root / missing).rename(root / "zzz")
    with pytest.raises(
        DataError,
        match=r"expected a folder imgs of photos, and reid_raw\.json or .*; found .*zzz; .*e-mail",
    ):
        read_cuhk_pedes(root)


def test_a_file_without_splits_has_persons_drawn_and_says_so(tmp_path: Path) -> None:
    root = make_cuhk_pedes(tmp_path)
    records = json.loads((root / "reid_raw.json").read_text())
    for record in records:
        del record["split"]
    (root / "reid_raw.json").unlink()
    (root / "caption_all.json").write_text(json.dumps(records))
    data = read_cuhk_pedes(root, seed=3)
    persons = {split: {image.identity for image in data.images if image.split == split} for split in SPLITS}
    assert not persons["train"] & persons["val"] | persons["train"] & persons["test"] | persons["val"] & persons["test"]
    assert any("caption_all.json does not state: persons are drawn with --seed" in line for line in data.skipped)


def make_of_others(root: Path, name: str, **values: Callable[[dict[str, Any]], Any]) -> Path:
    """CUHK-PEDES' photos with a file of annotations whose records have `values` computed from CUHK-PEDES' records."""
    make_cuhk_pedes(root)
    records = json.loads((root / "reid_raw.json").read_text())
    changed = [{**record, **{key: value(record) for key, value in values.items()}} for record in records]
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(json.dumps(changed))
    (root / "reid_raw.json").unlink()
    return root


OTHERS = {"icfg-pedes": read_icfg_pedes, "rstpreid": read_rstp_reid}


@pytest.mark.parametrize(
    ("name", "file", "path_key"),
    [
        ("icfg-pedes", "ICFG-PEDES.json", "file_path"),
        ("icfg-pedes", "ICFG_PEDES.json", "file_path"),
        ("icfg-pedes", "annotations/ICFG-PEDES.json", "file_path"),
        ("rstpreid", "data_captions.json", "img_path"),
        ("rstpreid", "annotations/data_captions.json", "img_path"),
    ],
)
def test_other_pedestrians_are_read_in_their_own_form(tmp_path: Path, name: str, file: str, path_key: str) -> None:
    expected = read_cuhk_pedes(make_cuhk_pedes(tmp_path / "cuhk"))
    root = make_of_others(tmp_path / "other", file, **{path_key: lambda record: record["file_path"]})
    data = OTHERS[name](root)
    assert data.name == name
    for attribute in ("path", "split", "captions"):
        assert [getattr(image, attribute) for image in data.images] == [
            getattr(image, attribute) for image in expected.images
        ]
    persons = [len({image.identity for image in read.images}) for read in (data, expected)]
    assert persons == [8, 8]
    (root / file).unlink()
    with pytest.raises(DataError, match="its authors send it to researchers who ask"):
        OTHERS[name](root)


def test_persons_of_icfg_pedes_may_be_numbered_anew_in_each_split(tmp_path: Path) -> None:
    root = make_of_others(tmp_path, "ICFG-PEDES.json", id=lambda record: record["id"] % 2)
    data = read_icfg_pedes(root)
    assert {image.identity for image in data.images} == {f"{split} {number}" for split in SPLITS for number in (0, 1)}
    (root / "ICFG-PEDES.json").rename(root / "data_captions.json")
    with pytest.raises(DataError, match="identity 1 is of 'train' and of 'val'"):
        read_rstp_reid(root)
