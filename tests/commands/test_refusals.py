"""What belongs to something else, or is not there yet, is refused with the command to run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.command_line import SCENES, TINY, dpce, succeed
from tests.core.tiny import dataset_file

NEEDING_DATA = [
    ("build-word2vec",),
    ("train-stage1",),
    ("train-stage2",),
    ("extract-features",),
    ("eval",),
    ("retrieve", "--query", "a man"),
]
USING_FEATURES = [("eval",), ("retrieve", "--query", "a man")]
QUICK = ("--workers", "0")


def _delete(workspace: Path, *names: str) -> None:
    for name in names:
        path = workspace / "scenes" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("arguments", NEEDING_DATA)
def test_nothing_works_before_a_data_set_is_prepared(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    workspace = tmp_path / "nothing"

    assert dpce(*arguments, workspace=workspace).error == (
        f"Error: {workspace}: no data set is prepared here; run 'dpce prepare-vocab scenes' (or another data set), "
        "or name the right folder with --workspace"
    )
    assert not workspace.exists()


@pytest.mark.parametrize("arguments", NEEDING_DATA)
def test_a_path_below_a_file_is_no_workspace(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("mine")

    assert "no data set is prepared here" in dpce(*arguments, workspace=tmp_path / "file" / "w").error


@pytest.mark.parametrize("name", ["dataset.json", "vocabulary.json", "images.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\n"])
def test_a_damaged_data_set_is_to_be_prepared_again(workspace: Path, name: str, content: bytes | None) -> None:
    path = dataset_file(workspace / "scenes", name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    error = dpce("train-stage1", *QUICK, workspace=workspace).error
    assert str(workspace / "scenes") in error
    assert "prepare-vocab" in error


def test_training_needs_word_vectors(prepared: Path) -> None:
    _delete(prepared, "word_vectors.h5")

    assert dpce("train-stage1", *QUICK, workspace=prepared).error == (
        f"Error: {prepared}/scenes/word_vectors.h5: there are no word vectors; run 'dpce build-word2vec', "
        "or train with --no-word-vectors"
    )
    assert not (prepared / "scenes" / "stage1").exists()
    succeed("train-stage1", *QUICK, "--no-word-vectors", workspace=prepared)


def test_word_vectors_of_another_vocabulary_are_to_be_built_again(prepared: Path) -> None:
    succeed(*SCENES, "--set", "text.min_count=3", workspace=prepared)

    assert dpce("train-stage1", *QUICK, workspace=prepared).error == (
        f"Error: {prepared}/scenes/word_vectors.h5: the word vectors were built for another vocabulary than data set "
        "'scenes' has now; run 'dpce build-word2vec' again"
    )
    succeed("build-word2vec", workspace=prepared)
    succeed("train-stage1", *QUICK, workspace=prepared)


def test_stage2_and_extraction_need_stage1(prepared: Path) -> None:
    for command in ("train-stage2", "extract-features"):
        assert dpce(command, *QUICK, workspace=prepared).error == (
            f"Error: {prepared}/scenes/stage1/best.pt: there is no such checkpoint; run 'dpce train-stage1' first"
        )
    assert not (prepared / "scenes" / "stage2").exists()


def test_extraction_with_stage2_needs_stage2(workspace: Path) -> None:
    _delete(workspace, "stage2")

    error = dpce("extract-features", "--stage", "2", *QUICK, workspace=workspace).error
    assert error.endswith("stage2/best.pt: there is no such checkpoint; run 'dpce train-stage2' first")


@pytest.mark.parametrize("arguments", USING_FEATURES)
def test_results_need_extracted_features(workspace: Path, arguments: tuple[str, ...]) -> None:
    _delete(workspace, "features")

    error = dpce(*arguments, workspace=workspace).error
    assert error == (f"Error: {workspace}/scenes/features/test.h5: not found; run 'dpce extract-features --split test'")
    succeed("extract-features", "--split", "test", *QUICK, workspace=workspace)
    succeed(*arguments, workspace=workspace)


@pytest.mark.parametrize("setting", [("--seed", "4"), ("--set", "text.min_count=3")])
def test_a_model_of_another_vocabulary_is_refused(workspace: Path, setting: tuple[str, ...]) -> None:
    succeed(*SCENES, *setting, workspace=workspace)
    succeed("build-word2vec", workspace=workspace)

    expected = "was trained with another vocabulary than the one of data set 'scenes'; run 'dpce train-stage{} --fresh'"
    for stage, command in ((1, "train-stage1"), (1, "train-stage2"), (2, "extract-features")):
        assert expected.format(stage) in dpce(command, *QUICK, workspace=workspace).error
    succeed("train-stage1", "--fresh", *QUICK, workspace=workspace)


def test_a_model_of_other_training_photos_is_refused(workspace: Path) -> None:
    succeed(*SCENES, "--train-images", "11", workspace=workspace)

    error = dpce("extract-features", *QUICK, workspace=workspace).error
    assert re.search("was trained (when data set 'scenes' had other training photos|with another vocabulary)", error)


@pytest.mark.parametrize("arguments", USING_FEATURES)
def test_embeddings_of_another_preparation_are_refused_and_the_model_stays(
    workspace: Path, arguments: tuple[str, ...]
) -> None:
    succeed(*SCENES, "--test-images", "5", workspace=workspace)

    error = dpce(*arguments, workspace=workspace).error
    assert "its embeddings were made from other photos or captions than data set 'scenes' has now" in error
    succeed("extract-features", *QUICK, workspace=workspace)
    succeed(*arguments, workspace=workspace)


@pytest.mark.parametrize("arguments", USING_FEATURES)
def test_features_of_another_model_are_refused(workspace: Path, arguments: tuple[str, ...]) -> None:
    _delete(workspace, "stage2")
    succeed("extract-features", *QUICK, workspace=workspace)
    succeed("train-stage1", "--seed", "4", "--fresh", *QUICK, workspace=workspace)

    assert dpce(*arguments, workspace=workspace).error == (
        f"Error: {workspace}/scenes/features/test.h5: its embeddings were made by another checkpoint than "
        f"{workspace}/scenes/stage1/best.pt; run 'dpce extract-features --split test' again"
    )
    succeed("extract-features", "--split", "test", *QUICK, workspace=workspace)
    succeed(*arguments, workspace=workspace)


def test_a_stage2_model_of_another_stage1_model_is_refused(workspace: Path) -> None:
    succeed("train-stage1", "--seed", "4", "--fresh", *QUICK, workspace=workspace)

    for arguments in (("extract-features", *QUICK), *USING_FEATURES):
        error = dpce(*arguments, workspace=workspace).error
        assert "stage2/best.pt: was trained from another Stage I model than" in error
        assert "run 'dpce train-stage2 --fresh'" in error
    succeed("extract-features", "--stage", "1", *QUICK, workspace=workspace)
    succeed("eval", workspace=workspace)
    succeed("train-stage2", "--fresh", *QUICK, workspace=workspace)
    succeed("extract-features", *QUICK, workspace=workspace)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("size", [0, 3000])
def test_a_damaged_checkpoint_is_to_be_trained_again(workspace: Path, stage: int, size: int) -> None:
    path = workspace / "scenes" / f"stage{stage}" / "best.pt"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:size])

    error = dpce("extract-features", "--stage", str(stage), *QUICK, workspace=workspace).error
    assert f"{path}: cannot be read as a checkpoint (" in error
    assert f"run 'dpce train-stage{stage}' again" in error


def test_a_split_that_the_data_set_lacks_is_refused_with_those_it_has(tmp_path: Path, flickr8k_root: Path) -> None:
    workspace = tmp_path / "w"
    succeed("prepare-vocab", "flickr8k", "--root", flickr8k_root, *TINY, workspace=workspace)

    for arguments in (("extract-features", *QUICK), *USING_FEATURES):
        error = dpce(*arguments, workspace=workspace).error
        assert error.startswith("Error: data set 'flickr8k' has no 'test' split; it has: train, val.")


def test_the_current_data_set_cannot_lie_elsewhere(workspace: Path) -> None:
    (workspace / "current").write_text("../elsewhere\n")

    error = dpce("eval", workspace=workspace).error
    assert "'../elsewhere' is not a folder beside it; run 'dpce prepare-vocab' again" in error


def test_a_configuration_of_another_version_is_to_be_prepared_again(workspace: Path) -> None:
    path = workspace / "scenes" / "dataset.json"
    about = json.loads(path.read_text())
    del about["config"]["model"]["dropout"], about["checksum"]
    path.unlink()
    path.write_text(json.dumps(about))

    error = dpce("train-stage1", *QUICK, workspace=workspace).error
    assert f"{path}: model lacks or does not know dropout; it was written by another version" in error
