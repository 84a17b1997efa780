from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.errors import DpceError, WorkspaceError
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.workspace.dataset import PreparedImage
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import dataset_file, prepare, tiny_config

IMAGES = [
    CaptionedImage(image_id="a/1", path="a/1.jpg", split="train", captions=("ein Hündchen 🐶", "a dog\u2028runs")),
    CaptionedImage(image_id="a/2", path="a/2.jpg", split="train", captions=("a cat",)),
    CaptionedImage(image_id="b", path="b.jpg", split="test", captions=("an unseen cat",)),
]


@pytest.fixture
def saved(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    prepare(workspace, Path("/photos"), IMAGES, tiny_config(None))
    return workspace


def test_a_data_set_is_read_as_it_was_saved(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    dataset = prepare(workspace, Path("/photos"), IMAGES, tiny_config(None, "seed=7"))
    assert workspace.load_dataset() == dataset
    assert dataset.config.seed == 7
    assert [image.captions for image in dataset.images] == [image.captions for image in IMAGES]
    words = dataset.vocabulary.words
    assert [words[i - 1] for i in dataset.images[2].token_ids[0]] == ["cat"]


def test_places_in_shards_are_read_as_they_were_saved_and_loose_files_have_none(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    stored = replace(IMAGES[1], path="0.tar/2.jpg", extent=(2**40, 512, 2**32 - 1))
    dataset = prepare(workspace, Path("/photos"), [IMAGES[0], stored], tiny_config(None))
    assert workspace.load_dataset() == dataset
    assert [image.extent for image in dataset.images] == [None, (2**40, 512, 2**32 - 1)]
    first, second = (
        json.loads(line) for line in dataset_file(workspace.folder, "images.jsonl").read_bytes().splitlines()
    )
    assert second.keys() - first.keys() == {"extent"}  # so that data sets without shards keep their fingerprints


def test_the_data_set_saved_last_is_the_current_one(saved: Workspace) -> None:
    config = tiny_config(None)
    saved.save_dataset(
        name="other",
        root=Path("/elsewhere"),
        config=config,
        vocabulary=Vocabulary(("cat",), True),
        images=[PreparedImage(image_id="1", path="1.jpg", split="train", captions=("cat",), token_ids=((1,),))],
    )
    assert saved.dataset_name == "other"
    assert saved.load_dataset().root == Path("/elsewhere")
    assert (saved.root / "tiny" / "dataset.json").is_file()


def test_the_fingerprints_tell_data_sets_apart(tmp_path: Path) -> None:
    def fingerprint(images: list[CaptionedImage], root: str = "/photos") -> str:
        dataset = prepare(Workspace(tmp_path), Path(root), images, tiny_config(None))
        return f"{dataset.training_fingerprint} {dataset.split_fingerprints}"

    moved = CaptionedImage(image_id="b", path="b.jpg", split="val", captions=("an unseen cat",))
    worded = CaptionedImage(image_id="b", path="b.jpg", split="test", captions=("an unseen dog",))
    fingerprints = [fingerprint(IMAGES), fingerprint([*IMAGES[:2], moved]), fingerprint([*IMAGES[:2], worded])]
    assert len({*fingerprints, fingerprint(IMAGES[::-1])}) == 4
    assert fingerprint(IMAGES) == fingerprint(IMAGES, "/moved") == fingerprints[0]


def test_a_split_that_is_not_there_is_an_error_that_names_those_that_are(saved: Workspace) -> None:
    dataset = saved.load_dataset()
    assert [image.image_id for image in dataset.split("train")] == ["a/1", "a/2"]
    with pytest.raises(WorkspaceError, match=r"data set 'tiny' has no 'val' split; it has: test, train. Choose"):
        dataset.split("val")


def test_an_empty_workspace_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no data set is prepared here; run 'dpce prepare-vocab"):
        Workspace(tmp_path / "nothing").load_dataset()


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "/etc", "tiny/..", "tiny/../../x"])
def test_a_current_data_set_outside_the_workspace_is_refused(saved: Workspace, name: str) -> None:
    shutil.copytree(saved.folder, saved.root.parent / "x")
    (saved.root / "current").write_text(name)
    with pytest.raises(WorkspaceError, match=r"current: .* is not a folder beside it; run 'dpce prepare-vocab' again"):
        saved.load_dataset()


@pytest.mark.parametrize("name", ["dataset.json", "vocabulary.json", "images.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe", b'{"words": 3}', b"null", b"\0" * 50])
def test_a_missing_or_damaged_file_says_what_to_run(saved: Workspace, name: str, content: bytes | None) -> None:
    if content is None:
        dataset_file(saved.folder, name).unlink()
    else:
        dataset_file(saved.folder, name).write_bytes(content)
    with pytest.raises(DpceError, match="prepare-vocab") as caught:
        saved.load_dataset()
    assert str(saved.folder) in str(caught.value)


@pytest.mark.parametrize("name", ["vocabulary.json", "images.jsonl", "dataset.json"])
def test_files_of_different_preparations_are_told_apart(saved: Workspace, name: str, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other")
    prepare(other, Path("/photos"), IMAGES[:1], tiny_config(None))
    shutil.copy(dataset_file(other.folder, name), dataset_file(saved.folder, name))
    with pytest.raises(
        WorkspaceError,
        match=r"(do not belong together|incomplete or damaged).*run 'dpce prepare-vocab' for data set 'tiny' again",
    ):
        saved.load_dataset()


def test_a_configuration_of_another_version_says_what_to_run(saved: Workspace) -> None:
    path = saved.folder / "dataset.json"
    about = json.loads(path.read_text())
    del about["config"]["stage1"]["schedule"], about["checksum"]
    path.write_text(json.dumps(about))
    with pytest.raises(DpceError, match=r"stage1 lacks or does not know schedule; .*run prepare-vocab again"):
        saved.load_dataset()


def test_a_workspace_can_be_copied(saved: Workspace, tmp_path: Path) -> None:
    before = saved.load_dataset()
    shutil.move(saved.root, tmp_path / "moved")
    assert Workspace(tmp_path / "moved").load_dataset() == before


def test_every_artefact_lies_below_the_data_set_it_belongs_to(saved: Workspace) -> None:
    paths = {
        saved.word_vectors_path,
        saved.stage_folder(1),
        saved.stage_folder(2),
        saved.features_path("val"),
        saved.features_path("test"),
        saved.feature_cache_path("train", "abc"),
    }
    assert len(paths) == 6
    assert all(path.is_relative_to(saved.root / "tiny") for path in paths)
