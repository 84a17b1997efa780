"""All commands, one after the other, and their numbers against plain computations on what they stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpce_cli.core.workspace.features import FeatureStore, load_feature_store
from dpce_cli.core.workspace.workspace import Workspace
from tests.command_line import TINY, succeed
from tests.oracles import retrieval as oracle

TEST_IMAGES = 20


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("end-to-end")
    sizes = ("--train-images", "60", "--test-images", str(TEST_IMAGES))
    succeed("prepare-vocab", "scenes", *sizes, *TINY, "--set", "image.mirror=true", workspace=workspace)
    succeed("build-word2vec", workspace=workspace)
    succeed("train-stage1", "--epochs", "2", workspace=workspace)
    succeed("train-stage2", workspace=workspace)
    succeed("extract-features", workspace=workspace)
    return workspace


@pytest.fixture(scope="module")
def store(workspace: Path) -> FeatureStore:
    return load_feature_store(workspace / "scenes" / "features" / "test.h5")


def _hits(workspace: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    outcome = succeed("retrieve", "--json", "--top-k", "1000", *arguments, workspace=workspace)
    hits: list[dict[str, Any]] = json.loads(outcome.stdout)
    return hits


def test_the_store_holds_the_test_split(store: FeatureStore) -> None:
    assert store.image_ids == tuple(f"test/{index:06d}" for index in range(TEST_IMAGES))
    assert store.image_of_text.tolist() == [index // 5 for index in range(5 * TEST_IMAGES)]


def test_evaluation_equals_the_oracle_on_the_stored_embeddings(workspace: Path, store: FeatureStore) -> None:
    metrics = json.loads(succeed("eval", "--json", workspace=workspace).stdout)

    similarity = (store.image_embeddings @ store.text_embeddings.T).tolist()
    owners = store.image_of_text.tolist()
    total = 0.0
    for name, (ranks, precisions), gallery in (
        ("image_to_text", oracle.image_to_text(similarity, owners), len(owners)),
        ("text_to_image", oracle.text_to_image(similarity, owners), TEST_IMAGES),
    ):
        recalls = {f"r{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        middle = sorted(ranks)[(len(ranks) - 1) // 2] + sorted(ranks)[len(ranks) // 2]
        expected = {
            **recalls,
            "median_rank": middle // 2,
            "mean_rank": sum(ranks) / len(ranks),
            "map": sum(precisions) / len(precisions),
            "queries": len(ranks),
            "gallery": gallery,
        }
        assert metrics[name] == pytest.approx(expected, abs=1e-9)
        total += 100 * sum(recalls.values())
    assert metrics["rsum"] == pytest.approx(total)


@pytest.mark.parametrize("image", [0, 7])
def test_a_gallery_photo_scores_as_its_stored_embedding(workspace: Path, store: FeatureStore, image: int) -> None:
    hits = _hits(workspace, "--image", Workspace(workspace).load_dataset().root / store.image_paths[image])

    scores = (store.text_embeddings @ store.image_embeddings[image] - store.text_hubness).tolist()
    owners = store.image_of_text.tolist()
    expected = {(store.image_ids[owners[text]], store.captions[text]): score for text, score in enumerate(scores)}
    assert {(hit["image_id"], hit["caption"]): hit["score"] for hit in hits} == pytest.approx(expected, abs=1e-5)
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)


@pytest.mark.parametrize("text", [0, 33])
def test_a_gallery_caption_scores_as_its_stored_embedding(workspace: Path, store: FeatureStore, text: int) -> None:
    hits = _hits(workspace, "--query", store.captions[text])

    scores = (store.image_embeddings @ store.text_embeddings[text] - store.image_hubness).tolist()
    expected = dict(zip(store.image_ids, scores, strict=True))
    assert {hit["image_id"]: hit["score"] for hit in hits} == pytest.approx(expected, abs=1e-5)
    assert [hit["rank"] for hit in hits] == list(range(1, TEST_IMAGES + 1))
    to_query = (store.text_embeddings @ store.text_embeddings[text]).tolist()
    for hit in hits:
        own = [j for j, owner in enumerate(store.image_of_text.tolist()) if store.image_ids[owner] == hit["image_id"]]
        (shown,) = (to_query[j] for j in own if store.captions[j] == hit["caption"])
        assert shown == pytest.approx(max(to_query[j] for j in own), abs=1e-5)


def test_a_copied_workspace_gives_the_same_results(workspace: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    for path in sorted(workspace.rglob("*")):
        if path.is_file() and "photos-" not in str(path):
            target = copied / path.relative_to(workspace)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())

    for arguments in (("eval", "--json"), ("retrieve", "--json", "--query", "a blonde woman in blue")):
        assert succeed(*arguments, workspace=copied) == succeed(*arguments, workspace=workspace)
    again = succeed("extract-features", workspace=copied)
    assert again.stderr.endswith("holds these embeddings already\n")
