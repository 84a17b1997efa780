from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.retrieval.hubness import has_hubness
from dpce_cli.core.storage.rows import open_or_resume
from dpce_cli.core.workspace.features import load_feature_store, open_feature_store

IMAGES = [
    CaptionedImage(image_id="7", path="photos/dog.jpg", split="test", captions=("a dog", "ein Hündchen")),
    CaptionedImage(image_id="9", path="photos/cat.jpg", split="test", captions=("a cat",), identity="Tom"),
]
IMAGE_EMBEDDINGS = torch.eye(4)[:2]
TEXT_EMBEDDINGS = torch.eye(4)[:3]
HUBNESS = torch.tensor([0.2, 0.1, 0.3])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole feature store."""
    path = tmp_path / "test.h5"
    with open_feature_store(path, images=IMAGES, dim=4, meta={"checkpoint": "abc"}) as store:
        store.append(image_embeddings=IMAGE_EMBEDDINGS, image_hubness=HUBNESS[:2])
        store.append(text_embeddings=TEXT_EMBEDDINGS[:1], text_hubness=HUBNESS[:1])
        store.append(text_embeddings=TEXT_EMBEDDINGS[1:], text_hubness=HUBNESS[1:])
        store.finish()
    return path


def test_a_feature_store_is_read_as_it_was_written(path: Path) -> None:
    store = load_feature_store(path)
    assert store.image_embeddings.equal(IMAGE_EMBEDDINGS)
    assert store.text_embeddings.equal(TEXT_EMBEDDINGS)
    assert store.image_hubness.equal(HUBNESS[:2])
    assert store.text_hubness.equal(HUBNESS)
    assert store.image_of_text.tolist() == [0, 0, 1]
    assert store.image_ids == ("7", "9")
    assert store.image_paths == ("photos/dog.jpg", "photos/cat.jpg")
    assert store.identities == ("", "Tom")
    assert store.captions == ("a dog", "ein Hündchen", "a cat")
    assert store.meta == {"checkpoint": "abc"}


def test_a_missing_feature_store_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"val\.h5: not found; run `dpce extract-features --split val`"):
        load_feature_store(tmp_path / "val.h5")


PARTS: dict[str, Any] = {
    "image_embeddings": IMAGE_EMBEDDINGS.numpy(),
    "text_embeddings": TEXT_EMBEDDINGS.numpy(),
    "image_hubness": HUBNESS[:2].numpy(),
    "text_hubness": HUBNESS.numpy(),
    "image_ids": ["7", "9"],
    "image_paths": ["photos/dog.jpg", "photos/cat.jpg"],
    "identities": ["", "Tom"],
    "captions": ["a dog", "ein Hündchen", "a cat"],
    "image_of_text": np.array([0, 0, 1]),
}


def write_parts(path: Path, parts: dict[str, Any]) -> None:
    """A whole store of any parts."""
    with open_or_resume(path, arrays={}, constants=parts, meta={"bank": None}) as store:
        store.finish()


def test_embeddings_from_before_hubness_was_stored_are_read_without(tmp_path: Path) -> None:
    parts = {name: part for name, part in PARTS.items() if not name.endswith("hubness")}
    with open_or_resume(tmp_path / "test.h5", arrays={}, constants=parts, meta={}) as writer:
        writer.finish()
    store = load_feature_store(tmp_path / "test.h5")
    assert not has_hubness(store)
    assert store.text_hubness.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", PARTS)
def test_a_feature_store_without_one_of_its_parts_is_refused(tmp_path: Path, name: str) -> None:
    write_parts(tmp_path / "test.h5", {key: part for key, part in PARTS.items() if key != name})
    with pytest.raises(WorkspaceError, match=rf"holds no '{name}'.*extract-features --split test"):
        load_feature_store(tmp_path / "test.h5")


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("image_embeddings", np.zeros((2, 4)), "not float32"),
        ("image_embeddings", np.zeros((2, 5), np.float32), r"shapes \(2, 5\) and \(3, 4\)"),
        ("text_embeddings", np.zeros(3, np.float32), r"shapes \(2, 4\) and \(3,\)"),
        ("image_embeddings", np.zeros((3, 4), np.float32), "3 images, 2 ids, 2 paths, 2 identities"),
        ("text_embeddings", np.zeros((2, 4), np.float32), "2 texts, 3 captions"),
        ("image_hubness", np.zeros(2), "image hubness is not one number from -1 to 1 per image"),
        ("text_hubness", np.zeros(2, np.float32), "text hubness is not one number"),
        ("text_hubness", np.array([0.1, np.nan, 0.2], np.float32), "text hubness is not one number"),
        ("image_of_text", np.array([0, 1]), r"image_of_text \(2,\)"),
        ("image_of_text", np.array([0, 1, 2]), "an image that is not there"),
        ("image_of_text", np.array([-1, 0, 1]), "an image that is not there"),
        ("text_embeddings", np.full((3, 4), np.nan, np.float32), "row 0 of its text embeddings is no unit vector"),
        ("image_embeddings", 1.1 * np.eye(4, dtype=np.float32)[:2], "row 0 of its image embeddings is no unit vector"),
    ],
)
def test_a_feature_store_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, name: str, value: np.ndarray[Any, Any], fault: str
) -> None:
    path = tmp_path / "test.h5"
    write_parts(path, {**PARTS, name: value})
    with pytest.raises(WorkspaceError, match=rf"test\.h5: .*{fault}.*extract-features --split test"):
        load_feature_store(path)
