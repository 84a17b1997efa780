from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.views import FixedViews
from dpce_cli.core.errors import DataError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.retrieval.encoding import encode_images, encode_text, pack_captions
from dpce_cli.core.retrieval.metrics import evaluate, evaluate_by_identity
from dpce_cli.core.training.stage1 import build_model
from dpce_cli.core.training.validation import ValidationSet
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.feature_cache import FeatureCache
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.tiny import Recorder, checkpoint, prepare, tiny_config, tiny_images


@pytest.fixture
def reporter() -> Recorder:
    return Recorder()


@pytest.fixture
def dataset(tmp_path: Path, weights: Path, tiny_cnn: None) -> PreparedDataset:
    """With its own photos."""
    root = tmp_path / "photos"
    return prepare(Workspace(tmp_path / "workspace"), root, tiny_images(root), tiny_config(weights))


@pytest.fixture
def model(dataset: PreparedDataset, frozen_stage1: Trained) -> DualEncoder:
    model, _ = build_model(dataset, dataset.config, None, stage=1)
    model.load_state_dict(checkpoint(frozen_stage1.workspace, 1, "best").model)
    return model


def validation_set(
    dataset: PreparedDataset, model: DualEncoder, reporter: Recorder, cache: FeatureCache | None = None
) -> ValidationSet:
    return ValidationSet(
        dataset,
        dataset.config,
        dataset.vocabulary,
        model.image_encoder,
        cache=cache,
        workers=0,
        reporter=reporter,
    )


def test_validation_is_retrieval_among_the_photos_and_captions_of_its_split(
    dataset: PreparedDataset, model: DualEncoder, reporter: Recorder
) -> None:
    metrics = validation_set(dataset, model, reporter).evaluate(model.train())
    assert not model.training
    images = dataset.split("val")
    view = FixedViews(dataset.config.image)
    views = torch.stack([view(load_image(dataset.root / image.path), 0) for image in images])
    captions = pack_captions(images, dataset.vocabulary, dataset.vocabulary, dataset.config.text.max_words)
    expected = evaluate(
        encode_images(model.image_encoder, views),
        encode_text(model.text_encoder, captions.token_ids, placements=4),
        captions.image_of_text,
    )
    assert metrics == expected
    assert (metrics.image_to_text.queries, metrics.text_to_image.queries) == (6, 12)
    assert reporter.warnings == []


def test_any_photo_of_a_captions_identity_is_a_hit(
    dataset: PreparedDataset, model: DualEncoder, reporter: Recorder
) -> None:
    plain = validation_set(dataset, model, reporter).evaluate(model)
    people = iter([None, "ann", "bob", "bob", "ann", "bob"])
    images = [replace(i, identity=next(people)) if i.split == "val" else i for i in dataset.images]
    dataset = replace(dataset, images=tuple(images))
    (dataset.root / dataset.split("val")[1].path).write_bytes(b"")  # ann has one photo left
    metrics = validation_set(dataset, model, reporter).evaluate(model)

    readable = [image for image in dataset.split("val") if image.path != dataset.split("val")[1].path]
    view = FixedViews(dataset.config.image)
    captions = pack_captions(readable, dataset.vocabulary, dataset.vocabulary, dataset.config.text.max_words)
    expected = evaluate_by_identity(
        encode_images(
            model.image_encoder, torch.stack([view(load_image(dataset.root / image.path), 0) for image in readable])
        ),
        encode_text(model.text_encoder, captions.token_ids, placements=4),
        captions.image_of_text,
        torch.tensor([0, 1, 1, 2, 1]),
    )
    assert metrics.text_to_image == expected != plain.text_to_image
    assert metrics.image_to_text.queries == 5


def test_cached_features_give_the_recall_that_photos_give(
    dataset: PreparedDataset, model: DualEncoder, reporter: Recorder, tmp_path: Path
) -> None:
    cached = validation_set(dataset, model, reporter, FeatureCache(Workspace(tmp_path / "workspace")))
    assert cached.features is not None
    assert cached.evaluate(model).rsum == validation_set(dataset, model, reporter).evaluate(model).rsum


@pytest.mark.parametrize("cache", [True, False])
def test_a_photo_that_cannot_be_read_is_named_and_leaves_with_its_captions(
    dataset: PreparedDataset, model: DualEncoder, reporter: Recorder, cache: bool, tmp_path: Path
) -> None:
    broken = dataset.root / dataset.split("val")[2].path
    broken.write_bytes(b"no image")
    workspace = FeatureCache(Workspace(tmp_path / "workspace")) if cache else None
    metrics = validation_set(dataset, model, reporter, workspace).evaluate(model)
    assert (metrics.text_to_image.gallery, metrics.image_to_text.gallery) == (5, 10)
    without = replace(dataset, images=tuple(i for i in dataset.images if dataset.root / i.path != broken))
    assert metrics.rsum == validation_set(without, model, Recorder()).evaluate(model).rsum
    assert re.match(rf"{broken}: .*: skipped", reporter.warnings[0])


@pytest.mark.parametrize("cache", [True, False])
def test_no_photo_that_can_be_read_is_an_error(
    dataset: PreparedDataset, model: DualEncoder, reporter: Recorder, cache: bool, tmp_path: Path
) -> None:
    for image in dataset.split("val"):
        (dataset.root / image.path).unlink()
    workspace = FeatureCache(Workspace(tmp_path / "workspace")) if cache else None
    with pytest.raises(DataError, match="photos: none of the 6 val"):
        validation_set(dataset, model, reporter, workspace).evaluate(model)


def test_a_data_set_without_a_validation_split_is_false(
    dataset: PreparedDataset, model: DualEncoder, reporter: Recorder
) -> None:
    without = replace(dataset, images=tuple(image for image in dataset.images if image.split != "val"))
    assert validation_set(dataset, model, reporter)
    assert not validation_set(without, model, reporter)
    assert reporter.warnings == ["no validation split: the model of the last epoch is taken as the best"]
