from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpce_cli.core.data.images import plain_view
from dpce_cli.core.training import batches, stage2
from dpce_cli.core.training.batches import Batch
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.tiny import (
    BATCH,
    BY_HEART,
    TRAIN,
    checkpoint,
    prepare,
    prepare_eight_pairs,
    records,
    tiny_config,
    tiny_images,
    train,
)

NEGATIVES = {
    "random": ["stage2.negatives=random"],
    "hardest_in_batch": ["stage2.negatives=hardest_in_batch"],
    "hardest_in_pool": [
        "stage2.negatives=hardest_in_pool",
        "stage2.captions_per_image=1",
        "stage2.negative_pool=6",
        "stage2.text_weight=0.1",
    ],
}


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_the_ranking_loss_is_learnt_perfectly(tmp_path: Path, weights: Path, negatives: str, tiny_cnn: None) -> None:
    workspace = Workspace(tmp_path)
    config = tiny_config(weights, *BY_HEART, *NEGATIVES[negatives], "stage1.epochs=1")
    prepare_eight_pairs(workspace, config)
    train(workspace, 1, config)
    result = train(workspace, 2, config)
    assert result.validation["rsum"] == 600
    first, *_, final = records(workspace, 2, "train")
    assert (final["image_accuracy"], final["text_accuracy"]) == (1, 1)
    assert final["ranking_loss"] < 0.2 * first["ranking_loss"]


@pytest.fixture
def details(tmp_path: Path) -> list[str]:
    """Settings that swap words of the tiny captions."""
    path = tmp_path / "words.toml"
    path.write_text(f'photo = ["{" ".join(f"x{index}" for index in range(TRAIN))}"]\n')
    return ["stage2.detail_weight=3", f"stage2.details={path}"]


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("with_details", [False, True])
def test_the_logged_loss_is_the_weighted_sum_of_its_parts(
    stage1: Trained, negatives: str, details: list[str], with_details: bool
) -> None:
    config = stage1.config.with_settings([*NEGATIVES[negatives], *(details if with_details else [])])
    train(stage1.workspace, 2, config)
    weights = config.stage2
    for record in records(stage1.workspace, 2, "train"):
        parts = (
            weights.ranking_weight * record["ranking_loss"]
            + weights.image_weight * record["image_loss"]
            + weights.text_weight * record["text_loss"]
            + weights.detail_weight * record.get("detail_loss", 0)
        )
        assert ("detail_loss" in record) == with_details
        assert record["loss"] == pytest.approx(parts, rel=1e-5)


def test_stage_ii_begins_from_stage_i(stage1: Trained) -> None:
    config = stage1.config.with_settings(["stage2.learning_rate=0", "stage2.epochs=1"])
    train(stage1.workspace, 2, config)
    first, second = checkpoint(stage1.workspace, 1, "best"), checkpoint(stage1.workspace, 2, "last")
    assert second.parent == first.fingerprint
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    changed = [key for key, value in second.model.items() if not torch.equal(value, first.model[key])]
    assert [key for key in changed if not key.endswith(statistics)] == []


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_photos_and_captions_of_the_same_identity_are_no_negatives(
    tmp_path: Path, negatives: str, photos: Path, weights: Path, tiny_cnn: None
) -> None:
    """Of 12 photos, each person has 4, so that batches hold a person twice."""
    workspace, config = Workspace(tmp_path), tiny_config(weights, *NEGATIVES[negatives])
    images = [
        replace(image, identity=str(index // 4)) if image.split == "train" else image
        for index, image in enumerate(tiny_images(photos))
    ]
    prepare(workspace, photos, images, config)
    train(workspace, 1, config)
    assert checkpoint(workspace, 1, "best").instances == 3
    train(workspace, 2, config)
    losses = [record["ranking_loss"] for record in records(workspace, 2, "train")]
    assert all(math.isfinite(loss) for loss in losses)


def test_where_a_batch_is_of_one_identity_the_ranking_loss_is_zero(
    tmp_path: Path, photos: Path, weights: Path, tiny_cnn: None
) -> None:
    for negatives in ("hardest_in_batch", "random"):
        workspace, config = Workspace(tmp_path / negatives), tiny_config(weights, f"stage2.negatives={negatives}")
        prepare(workspace, photos, [replace(image, identity="ann") for image in tiny_images(photos)], config)
        train(workspace, 1, config)
        train(workspace, 2, config)
        assert {record["ranking_loss"] for record in records(workspace, 2, "train")} == {0}


def test_captions_of_the_pool_belong_to_no_photo_of_the_batch(stage1: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Batch]()
    triplets = stage2._TRIPLETS["hardest_in_pool"]

    def spying(image: Tensor, text: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(batch)
        return triplets(image, text, batch)

    monkeypatch.setitem(stage2._TRIPLETS, "hardest_in_pool", spying)
    train(stage1.workspace, 2, stage1.config.with_settings(NEGATIVES["hardest_in_pool"]))
    for batch in seen:
        assert len(batch.image_of_text) == len(batch.token_ids) == BATCH
        own = batch.image_of_text >= 0
        assert own.tolist() == [True] * (BATCH // 2) + [False] * (BATCH // 2)
        assert batch.instance_ids[batch.image_of_text[own]].equal(batch.text_instance_ids[own])


def test_a_cnn_whose_lower_part_is_cached_learns_as_from_photos(
    stage1: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        batches, "random_crop", lambda config, photo, *_: plain_view(photo, resize=config.resize, crop=config.crop)
    )
    settings = ["image.cached_crops=0", "image.frozen_until=bn1", "stage2.multipliers.backbone=1"]
    # Random numbers for positions come after those for cached views, so they would differ.
    config = stage1.config.with_settings([*settings, "model.position_shift=false"])
    before = checkpoint(stage1.workspace, 1, "best").model
    losses = []
    for cache in (True, False):
        train(stage1.workspace, 2, config, fresh=True, cache=cache)
        losses.append([record["loss"] for record in records(stage1.workspace, 2, "train")])
        after = checkpoint(stage1.workspace, 2, "last").model
        changed = {name for name, value in after.items() if "backbone" in name and not value.equal(before[name])}
        assert changed == {f"image_encoder.backbone.{name}" for name in ("conv2.weight", "bn2.weight", "bn2.bias")}
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # the cache rounds, and AdamW enlarges small differences
