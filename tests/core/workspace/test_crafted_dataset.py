"""Files of a data set that nobody's prepare-vocab wrote: each ends in one line that names the file and the command."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from dpce_cli.core.data.readers.coco import read_coco
from dpce_cli.core.errors import DpceError, WorkspaceError
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import dataset_file, prepare, tiny_config
from tests.core.workspace.test_workspace import IMAGES
from tests.layouts import make_coco

Record = dict[str, Any]


@pytest.fixture
def saved(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    prepare(workspace, Path("/photos"), IMAGES, tiny_config(None))
    return workspace


def _about(workspace: Workspace, **changes: Any) -> None:
    """Change dataset.json, as a person who crafts one would: without a checksum."""
    path = workspace.folder / "dataset.json"
    about = {**json.loads(path.read_text()), **changes, "checksum": None}
    path.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


def _assert_refused(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match=r"run 'dpce prepare-vocab' for data set 'tiny' again$") as caught:
        workspace.load_dataset()
    assert str(workspace.folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(workspace.folder), "")) < 500


@pytest.mark.parametrize(
    "changes",
    [
        {"root": None}, {"root": 3}, {"root": "/a\0b"}, {"source": []}, {"images": "../images.jsonl"}, {"images": ""},
        {"words": "/etc/passwd"}, {"words": 1}, {"fingerprint": None}, {"training": {}}, {"splits": []},
        {"splits": None}, {"vocabulary": None}, {"vocabulary": "0"}, {"config": None}, {"config": []},
        {"config": {"seed": 1}}, {"format": 1}, {"format": "2"}, {"format": [2]}, {"images": "dataset.json"},
        {"words": "dataset.json"}, {"images": "x" * 300},
    ],
    ids=str,
)  # fmt: skip
def test_a_crafted_description_is_refused(saved: Workspace, changes: Record) -> None:
    _about(saved, **changes)
    _assert_refused(saved)


def test_the_name_in_the_description_does_not_count(saved: Workspace) -> None:
    before = saved.load_dataset()
    for name in (None, 3, "../../other"):
        _about(saved, name=name)
        assert saved.load_dataset() == before
        assert "prepared from /photos" in saved.note_of_replacement("tiny", Path("/other"), is_named=True)


def _craft_images(workspace: Workspace, change: Callable[[Record], Any]) -> None:
    """Change the first line of images.jsonl, and say so in dataset.json."""
    path = dataset_file(workspace.folder, "images.jsonl")
    first, *others = path.read_bytes().splitlines()
    changed = change(json.loads(first))
    line = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    content = b"\n".join([line, *others])
    path.write_bytes(content)
    _about(workspace, fingerprint=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    "changes",
    [
        {"image_id": 7}, {"image_id": None}, {"image_id": "\ud800"}, {"path": 7}, {"path": ""}, {"path": "/etc/passwd"},
        {"path": "a/../../b"}, {"path": "a\0b"}, {"path": ["a"]}, {"split": "dev"}, {"split": 1}, {"split": ["train"]},
        {"captions": []}, {"captions": "a dog"}, {"captions": [3, 4]}, {"captions": None},
        {"captions": ["\udfff", "a"]},
        {"identity": ["a"]}, {"identity": 3}, {"identity": False}, {"token_ids": []}, {"token_ids": [[1]]},
        {"token_ids": [[10**9], [1]]}, {"token_ids": [[0], [1]]}, {"token_ids": [[-1], [1]]},
        {"token_ids": [["a"], [1]]},
        {"token_ids": [[1.0], [1]]}, {"token_ids": [[True], [1]]}, {"token_ids": [1, 1]}, {"token_ids": None},
        {"token_ids": [[10**30], [1]]}, {"extent": [1, 2]}, {"extent": [1, 2, -3]}, {"extent": [1, 2, 2**70]},
        {"extent": "123"}, {"extent": [1.0, 2.0, 3.0]}, {"extent": 5},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_crafted_image_is_refused_by_its_line(saved: Workspace, changes: Record) -> None:
    _craft_images(saved, lambda record: {**record, **changes})
    _assert_refused(saved)
    with pytest.raises(WorkspaceError, match=r"images-\w+\.jsonl:1: "):
        saved.load_dataset()


@pytest.mark.parametrize("name", ["image_id", "path", "split", "captions", "token_ids"])
def test_an_image_without_a_part_is_refused(saved: Workspace, name: str) -> None:
    _craft_images(saved, lambda record: {key: value for key, value in record.items() if key != name})
    _assert_refused(saved)


@pytest.mark.parametrize("line", [b"[]", b"3", b"null", b"{", b"\xff", b"[" * 10_000, b'{"image_id": ' + b"9" * 5000])
def test_a_line_that_is_no_image_is_refused(saved: Workspace, line: bytes) -> None:
    _craft_images(saved, lambda record: line)
    _assert_refused(saved)


@pytest.mark.parametrize(
    "words",
    [[], None, 3, {"lowercase": 1, "words": ["a"]}, {"lowercase": True, "words": [3]},
     {"lowercase": True, "words": [""]},
     {"lowercase": True, "words": ["a", "a"]}, {"lowercase": True, "words": "ab"}, {"words": ["a"]}],
    ids=str,
)  # fmt: skip
def test_a_crafted_vocabulary_is_refused(saved: Workspace, words: Any) -> None:
    dataset_file(saved.folder, "vocabulary.json").write_text(json.dumps(words))
    _assert_refused(saved)


def test_token_ids_of_another_vocabulary_are_refused(saved: Workspace) -> None:
    words = {"lowercase": True, "words": ["a"]}
    dataset_file(saved.folder, "vocabulary.json").write_text(json.dumps(words))
    _about(saved, vocabulary=Vocabulary.from_json(words, "").fingerprint)
    _assert_refused(saved)


@pytest.mark.parametrize(
    "content",
    [b"[]", b"3", b"{", b"", b"\xff", b'{"train": 3}', b'{"train": ["1"]}', b"[" * 10_000,
     b'{"train": [["1"]], "val": [], "test": []}', b'{"train": [null], "val": [], "test": []}',
     b'{"train": {"1": 2}, "val": [], "test": []}', b'{"train": ["1"], "val": ["1"], "test": []}',
     b'{"train": ["\\ud800"], "val": [], "test": []}', b'{"train": [' + b"9" * 5000 + b'], "val": [], "test": []}'],
    ids=ascii,
)  # fmt: skip
def test_crafted_splits_end_in_one_line(tmp_path: Path, content: bytes) -> None:
    root, path = make_coco(tmp_path / "coco"), tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(DpceError) as caught:
        read_coco(root, splits=str(path), seed=0)
    assert "\n" not in str(caught.value)


def _plain(dataset: PreparedDataset) -> tuple[object, ...]:
    return (*(getattr(dataset, name) for name in vars(dataset) if name != "images"), *map(astuple, dataset.images))


@pytest.mark.parametrize("name", ["dataset.json", "images.jsonl", "vocabulary.json"])
def test_a_flipped_bit_of_a_data_set_is_found_or_changes_nothing(saved: Workspace, name: str) -> None:
    path, chance = dataset_file(saved.folder, name), random.Random(name)
    whole, before, found = path.read_bytes(), _plain(saved.load_dataset()), 0
    for _ in range(400):
        position, bit = chance.randrange(len(whole)), chance.randrange(8)
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
        with suppress(WorkspaceError):
            assert _plain(saved.load_dataset()) == before
            continue
        found += 1
    assert found > 200
