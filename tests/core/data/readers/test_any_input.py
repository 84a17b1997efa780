"""Whatever the files of a published data set hold, its reader returns a valid data set or raises a `DataError`."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpce_cli.core.data.readers.coco import read_coco
from dpce_cli.core.data.readers.cuhk_pedes import read_cuhk_pedes
from dpce_cli.core.data.readers.flickr30k import read_flickr30k
from dpce_cli.core.data.readers.webdataset import read_webdataset
from dpce_cli.core.data.records import SPLITS, CaptionedImages
from dpce_cli.core.data.shards import open_photo
from dpce_cli.core.errors import DpceError
from dpce_cli.core.progress import Reporter
from tests.layouts import make_coco, make_cuhk_pedes, make_flickr30k
from tests.tars import write_tar

KEYS = (
    *("dataset", "images", "annotations", "id", "image_id", "caption", "captions", "file_name", "file_path"),
    *("filepath", "filename", "cocoid", "split", "sentences", "raw", "train", "val", "test"),
)
NAMES = (
    "coco",
    "flickr30k",
    "train",
    "val",
    "test",
    "restval",
    "",
    "..",
    "/etc/passwd",
    "../x.jpg",
    "val2014",
    "\ud800",
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 12),
    st.integers(),
    st.floats(),
    st.sampled_from(NAMES),
    st.text(st.characters(), max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)

Read = Callable[[Path], CaptionedImages]
CASES: dict[str, tuple[Callable[[Path], Path], str, Read]] = {
    "coco, Karpathy's": (make_coco, "dataset_coco.json", lambda root: read_coco(root, splits="karpathy", seed=0)),
    "coco, official": (
        make_coco,
        "annotations/captions_val2014.json",
        lambda root: read_coco(root, splits="paper", seed=0, drawn=1),
    ),
    "coco, own splits": (
        make_coco,
        "splits.json",
        lambda root: read_coco(root, splits=str(root / "splits.json"), seed=0),
    ),
    "flickr30k, Karpathy's": (
        make_flickr30k,
        "dataset_flickr30k.json",
        lambda root: read_flickr30k(root, splits="karpathy"),
    ),
    "cuhk-pedes": (make_cuhk_pedes, "reid_raw.json", read_cuhk_pedes),
}
TEXTS = {
    "token": ("results_20130124.token", "results.csv"),
    "table": ("results.csv", "results_20130124.token"),
    "list": ("Flickr_8k.devImages.txt", None),
}
Case = tuple[Path, Path, bytes, Read]
"""Root, file to spoil, what it should hold, and reader."""
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def valid_or_refused(read: Read, root: Path) -> None:
    try:
        data = read(root)
    except DpceError as error:
        str(error).encode()  # or it could not be printed
        return
    assert data.images
    assert len({image.image_id for image in data.images}) == len({image.path for image in data.images})
    assert len({image.path for image in data.images}) == len(data.images)
    splits: dict[str, str] = {}
    for image in data.images:
        with open_photo(root / image.path, image.extent) as photo:
            photo.read()
        assert image.split in SPLITS
        assert (root / image.path).resolve().is_relative_to(root.resolve())
        assert image.captions
        assert all(caption.encode() and caption == " ".join(caption.split()) for caption in image.captions)
        assert splits.setdefault(image.identity or image.image_id, image.split) == image.split
    assert all(line.encode() and line.isprintable() for line in data.skipped)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    make, name, read = CASES[request.param]
    root = make(tmp_path)
    (root / "splits.json").write_text(json.dumps({"train": ["1", "2"], "val": ["3"], "test": ["4", "9"]}))
    valid_or_refused(read, root)
    return root, root / name, (root / name).read_bytes(), read


def change(value: Any, data: st.DataObject) -> Any:
    """The value with one part of it replaced, removed or repeated."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 4)) == 0:
        return data.draw(VALUES)
    key: Any = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    action = data.draw(st.sampled_from(["inside", "inside", "inside", "remove", "repeat"]))
    if action == "remove":
        del value[key]
    elif action == "repeat" and isinstance(value, list):
        value.append(copy.deepcopy(value[key]))
    else:
        value[key] = change(value[key], data)
    return value


@many
@given(st.data())
def test_a_changed_file(case: Case, data: st.DataObject) -> None:
    root, path, original, read = case
    value = json.loads(original)
    for _ in range(data.draw(st.integers(1, 3))):
        value = change(value, data)
    path.write_text(json.dumps(value))
    valid_or_refused(read, root)


@many
@given(VALUES)
def test_any_json(case: Case, value: Any) -> None:
    root, path, _, read = case
    path.write_text(json.dumps(value))
    valid_or_refused(read, root)


@many
@given(st.data())
def test_a_truncated_or_spoilt_file(case: Case, data: st.DataObject) -> None:
    root, path, original, read = case
    cut = data.draw(st.integers(0, len(original)))
    path.write_bytes(original[:cut] + data.draw(st.binary(max_size=20)))
    valid_or_refused(read, root)


LINES = st.lists(
    st.one_of(
        st.builds(
            "{}{}{}{}{}".format,
            st.sampled_from(["1.jpg", "6.jpg", "6_a.jpg", "404.jpg", "../1.jpg", "/1.jpg", ""]),
            st.sampled_from(["#", "| ", ""]),
            st.integers(0, 9),
            st.sampled_from(["\t", "|", "   ", ""]),
            st.text(max_size=10),
        ),
        st.text(max_size=20),
    ),
    max_size=4,
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("kind", TEXTS)
@many
@given(added=LINES | st.binary(max_size=40), cut=st.integers(0, 400))
def test_changed_text_files_of_flickr30k(tmp_path: Path, kind: str, added: bytes, cut: int) -> None:
    root = tmp_path / "root"
    if not root.exists():
        make_flickr30k(root)
        if other := TEXTS[kind][1]:
            (root / other).unlink()
    path = root / TEXTS[kind][0]
    original = path.read_bytes()
    path.write_bytes(original[:cut] + added)
    valid_or_refused(lambda root: read_flickr30k(root, splits="paper"), root)
    path.write_bytes(original)


def read_shards(root: Path) -> CaptionedImages:
    return read_webdataset(root, val_fraction=0.3, test_fraction=0.3, seed=0, reporter=Reporter())


MEMBERS = st.lists(
    st.tuples(
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["", "./", "sub/", "/", "../", "a.b/", f"{'long/' * 40}", "\udcff"]),
            st.sampled_from(["a", "a", "b", "", ".", "子", "x" * 120]),
            st.sampled_from([".jpg", ".JPG", ".png", ".seg.png", ".txt", ".json", ".cls", "", "."]),
        ),
        st.binary(max_size=20)
        | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))
        | VALUES.map(lambda value: json.dumps(value).encode())
        | st.fixed_dictionaries({"captions": st.lists(st.text(), max_size=3)}).map(
            lambda value: json.dumps(value).encode()
        ),
    ),
    max_size=8,
)


@many
@given(
    shards=st.dictionaries(st.sampled_from(["0.tar", "train-1.tar", "val/2.tar", "dev-test.tar"]), MEMBERS, max_size=3)
)
def test_any_members_of_shards(tmp_path: Path, shards: dict[str, list[tuple[str, bytes]]]) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, shard in shards.items():
        write_tar(root / name, shard)
    valid_or_refused(read_shards, root)


@many
@given(data=st.data())
def test_a_spoilt_shard(tmp_path: Path, data: st.DataObject) -> None:
    shard = write_tar(
        tmp_path / "0.tar",
        [(f"{'x' * 60 * number}{number}{end}", b"a dog") for number in range(3) for end in (".jpg", ".txt")],
    )
    spoilt = bytearray(shard.read_bytes())[: data.draw(st.integers(0, 8192))]
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(spoilt)))
        patch = data.draw(st.binary(max_size=12))
        spoilt[start : start + len(patch)] = patch
    shard.write_bytes(spoilt)
    valid_or_refused(read_shards, tmp_path)
