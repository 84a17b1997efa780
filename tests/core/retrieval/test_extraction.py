from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.config import Config
from dpce_cli.core.data.contents import photo_content
from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.views import FixedViews
from dpce_cli.core.errors import CheckpointError, DataError, WorkspaceError
from dpce_cli.core.processes.collectives import rank
from dpce_cli.core.progress import Advance, Reporter
from dpce_cli.core.retrieval.calibration import fit_relevance
from dpce_cli.core.retrieval.encoding import encode_images, encode_text
from dpce_cli.core.retrieval.extraction import extract_features
from dpce_cli.core.retrieval.hubness import NEAREST, has_hubness
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.retrieval.relevance import load_relevances
from dpce_cli.core.workspace.artefacts import load_best, load_features
from dpce_cli.core.workspace.checkpoint import Checkpoint
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.features import load_feature_store
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.gloo import in_processes
from tests.core.tiny import (
    Recorder,
    TinyCNN,
    checkpoint,
    copy,
    prepare,
    save_weights,
    tiny_cnn,
    tiny_config,
    tiny_images,
    train,
)

CPU = torch.device("cpu")
VAL = 40
"""More photos than are read at a time."""


@pytest.fixture(scope="session")
def trained_with_many_photos(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Stage I of a model that averages over mirror images and placements."""
    folder = tmp_path_factory.mktemp("many")
    weights = save_weights(folder / "weights.pt", TinyCNN())
    workspace, config = Workspace(folder / "workspace"), tiny_config(weights, "image.mirror=true", "stage1.epochs=1")
    prepare(workspace, folder / "photos", tiny_images(folder / "photos", val=VAL), config)
    with tiny_cnn():
        train(workspace, 1, config)
    return workspace


@pytest.fixture
def many(tmp_path: Path, trained_with_many_photos: Workspace, tiny_cnn: None) -> Workspace:
    """Without the cached features, so that photos are read."""
    workspace = copy(trained_with_many_photos, tmp_path / "many")
    shutil.rmtree(workspace.folder / "cache")
    return workspace


def _extract(
    workspace: Workspace,
    model: Checkpoint | None = None,
    *,
    dataset: PreparedDataset | None = None,
    split: str = "val",
    reporter: Reporter | None = None,
    workers: int = 0,
) -> Path:
    dataset = dataset or workspace.load_dataset()
    model = model or load_best(workspace, dataset, None)
    return extract_features(
        workspace, dataset, model, split=split, device=CPU, workers=workers, reporter=reporter or Reporter()
    )


def _one_by_one(dataset: PreparedDataset, model: Checkpoint, placements: int | None) -> tuple[Tensor, Tensor]:
    """The embeddings of the validation split, each photo and caption by itself."""
    image_encoder, text_encoder = Model.of_checkpoint(model).image_encoder, Model.of_checkpoint(model).text_encoder
    view = FixedViews(model.config.image)
    images, texts = [], []
    for image in dataset.split("val"):
        images.append(encode_images(image_encoder, view(load_image(dataset.root / image.path), 0)[None]))
        for ids in image.token_ids:
            token_ids = torch.zeros(1, model.config.text.max_words, dtype=torch.int32)
            token_ids[0, : len(ids)] = torch.tensor(ids)
            texts.append(encode_text(text_encoder, token_ids, placements=placements))
    return torch.cat(images), torch.cat(texts)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_photo_and_caption_is_embedded_as_by_itself(many: Workspace, workers: int) -> None:
    dataset, model = many.load_dataset(), checkpoint(many, 1, "best")
    store = load_feature_store(_extract(many, model, workers=workers))

    images, texts = _one_by_one(dataset, model, None)
    torch.testing.assert_close(store.image_embeddings, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(store.text_embeddings, texts, atol=1e-5, rtol=0)
    assert store.image_ids == tuple(image.image_id for image in dataset.split("val"))
    assert store.captions == tuple(caption for image in dataset.split("val") for caption in image.captions)


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_photos_of_any_size_are_embedded_as_a_query_is(many: Workspace, tmp_path: Path, workers: int) -> None:
    dataset, model = many.load_dataset(), checkpoint(many, 1, "best")
    dataset = replace(dataset, root=shutil.copytree(dataset.root, tmp_path / "photos"))
    model = replace(model, config=replace(model.config, image=replace(model.config.image, test_view="full")))
    paths = [dataset.root / image.path for image in dataset.split("val")]
    for number, path in enumerate(paths):
        with Image.open(path) as photo:
            photo.resize((40 + number % 3, 40 + 7 * (number % 2))).save(path)
    paths[3].write_bytes(b"")
    reporter = Recorder()
    store = load_feature_store(_extract(many, model, dataset=dataset, workers=workers, reporter=reporter))

    kept = [path for path in paths if path != paths[3]]
    assert store.image_paths == tuple(path.name for path in kept)
    queries = torch.from_numpy(Model.of_checkpoint(model).encode_images(kept))
    torch.testing.assert_close(store.image_embeddings, queries, atol=1e-5, rtol=0)
    assert "taking the image CNN's features from the cache" not in reporter.notes


def test_cached_features_stand_in_for_the_photos(
    many: Workspace, tmp_path: Path, trained_with_many_photos: Workspace
) -> None:
    expected = load_feature_store(_extract(many))
    cached, reporter = copy(trained_with_many_photos, tmp_path / "cached"), Recorder()
    with patch("dpce_cli.core.data.loading.load_image", side_effect=AssertionError("a photo was read")):
        store = load_feature_store(_extract(cached, reporter=reporter))

    assert "taking the image CNN's features from the cache" in reporter.notes
    assert store.image_ids == expected.image_ids
    torch.testing.assert_close(store.image_embeddings, expected.image_embeddings, atol=5e-3, rtol=0)  # float16


def test_without_position_shift_captions_are_embedded_left_aligned(many: Workspace) -> None:
    model = checkpoint(many, 1, "best")
    config = replace(model.config, model=replace(model.config.model, position_shift=False))
    model = replace(model, config=config)
    store = load_feature_store(_extract(many, model))

    _, texts = _one_by_one(many.load_dataset(), model, 1)
    torch.testing.assert_close(store.text_embeddings, texts, atol=1e-5, rtol=0)


def test_the_store_says_what_it_was_made_from(many: Workspace) -> None:
    dataset, model = many.load_dataset(), checkpoint(many, 1, "best")
    meta = load_feature_store(_extract(many)).meta

    assert meta == {
        "split": "val",
        "stage": 1,
        "checkpoint": model.fingerprint,
        "made_from": dataset.split_fingerprints["val"],
        "contents": [photo_content(dataset.root / image.path, None) for image in dataset.split("val")],
        "config": model.config.to_dict(),
        "bank": [NEAREST, 12, 24],
    }
    assert Config.from_dict(meta["config"], "") == model.config


def test_hubness_is_half_the_mean_cosine_to_the_nearest_training_embeddings(many: Workspace) -> None:
    store = load_feature_store(_extract(many))
    train = load_feature_store(_extract(many, split="train"))

    for own, hubness, others in (
        (store.image_embeddings, store.image_hubness, train.text_embeddings),
        (store.text_embeddings, store.text_hubness, train.image_embeddings),
    ):
        for row, value in zip(own, hubness, strict=True):
            nearest = sorted((float(row @ other) for other in others), reverse=True)[:NEAREST]
            assert float(value) == pytest.approx(sum(nearest) / len(nearest) / 2, abs=1e-5)


def test_the_val_split_fits_the_relevance_of_results(many: Workspace) -> None:
    model = checkpoint(many, 1, "best")
    path = many.relevance_path(1)
    _extract(many, split="train")
    assert load_relevances(path, model.fingerprint) is None

    store = load_feature_store(_extract(many))
    assert load_relevances(path, model.fingerprint) == fit_relevance(store)
    path.unlink()
    _extract(many)
    assert load_relevances(path, model.fingerprint) == fit_relevance(store)


def test_the_training_embeddings_are_computed_once_per_model(many: Workspace) -> None:
    first, second = _Labels(), _Labels()
    _extract(many, reporter=first)
    _extract(many, split="train", reporter=second)
    assert first.labels == [
        *("embedding train photos", "embedding train captions"),
        *("embedding val photos", "embedding val captions"),
    ]
    assert second.labels == ["embedding train photos", "embedding train captions"]


def test_without_training_photos_hubs_are_not_corrected_and_it_is_said(many: Workspace, tmp_path: Path) -> None:
    dataset = many.load_dataset()
    without = replace(dataset, root=shutil.copytree(dataset.root, tmp_path / "photos"))
    for image in dataset.split("train"):
        (without.root / image.path).unlink()
    reporter = Recorder()
    store = load_feature_store(_extract(many, dataset=without, reporter=reporter))
    assert reporter.warnings == [f"{without.root}: no training photo can be read; results are not corrected for hubs"]
    assert not has_hubness(store)
    assert not store.image_hubness.any()
    assert not store.text_hubness.any()
    assert has_hubness(load_feature_store(_extract(many)))


def test_embeddings_stay_where_the_photos_are_not_mounted(many: Workspace, tmp_path: Path) -> None:
    path = _extract(many)
    before, away = path.read_bytes(), replace(many.load_dataset(), root=tmp_path / "away")
    reporter = Recorder()
    assert _extract(many, dataset=away, reporter=reporter) == path
    assert reporter.notes == [f"{path} holds these embeddings already"]
    assert path.read_bytes() == before


def test_a_replaced_photo_is_embedded_again(many: Workspace, tmp_path: Path) -> None:
    before = load_feature_store(_extract(many)).image_embeddings.clone()
    dataset = many.load_dataset()
    moved = replace(dataset, root=shutil.copytree(dataset.root, tmp_path / "photos"))
    first, second = (moved.root / image.path for image in moved.split("val")[:2])
    shutil.copy(first, second)
    after = load_feature_store(_extract(many, dataset=moved)).image_embeddings
    assert not torch.allclose(after[1], before[1])
    torch.testing.assert_close(after[1], after[0])


class _Labels(Reporter):
    """Keeps the labels of what is tracked."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        self.labels.append(label)
        yield lambda count=1, fields=None: None


class _Impatient(Reporter):
    """Interrupts after some advances."""

    def __init__(self, advances: int) -> None:
        self.left = advances

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        def advance(count: int = 1, fields: Mapping[str, str] | None = None) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

        yield advance


@pytest.mark.parametrize("advances", range(6))
def test_an_interrupted_extraction_goes_on_to_the_same_store(many: Workspace, advances: int, tmp_path: Path) -> None:
    whole = load_feature_store(_extract(copy(many, tmp_path / "whole")))
    with pytest.raises(KeyboardInterrupt):
        _extract(many, reporter=_Impatient(advances))
    assert not many.features_path("val").exists()

    store = load_feature_store(_extract(many))
    torch.testing.assert_close(store.image_embeddings, whole.image_embeddings, atol=1e-6, rtol=0)
    torch.testing.assert_close(store.text_embeddings, whole.text_embeddings, atol=1e-6, rtol=0)


def test_an_interrupted_extraction_of_another_model_begins_anew(many: Workspace) -> None:
    model = checkpoint(many, 1, "best")
    with pytest.raises(KeyboardInterrupt):
        _extract(many, replace(model, fingerprint="another"), reporter=_Impatient(1))

    store = load_feature_store(_extract(many, model))
    torch.testing.assert_close(
        store.image_embeddings, _one_by_one(many.load_dataset(), model, None)[0], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("broken", [{0}, {5, 17}, set(range(16, 32)), set(range(VAL - 1))])
def test_unreadable_photos_are_left_out_and_move_no_other(many: Workspace, tmp_path: Path, broken: set[int]) -> None:
    whole = load_feature_store(_extract(many))
    dataset = replace(many.load_dataset(), root=tmp_path / "broken")
    shutil.copytree(many.load_dataset().root, dataset.root)
    for index in broken:
        (dataset.root / dataset.split("val")[index].path).write_bytes(b"")
    reporter = Recorder()
    store = load_feature_store(_extract(many, dataset=dataset, reporter=reporter))

    kept = [index for index in range(VAL) if index not in broken]
    torch.testing.assert_close(store.image_embeddings, whole.image_embeddings[kept], atol=1e-6, rtol=0)
    assert store.image_ids == tuple(whole.image_ids[index] for index in kept)
    assert len(store.captions) == 2 * len(kept)
    assert len(reporter.warnings) == len(broken) + 1
    assert reporter.warnings[-1].startswith(f"{len(broken)} of {VAL} val photos could not be read; they and their")


def test_a_split_without_a_readable_photo_is_refused_and_tried_again(many: Workspace) -> None:
    dataset = many.load_dataset()
    with pytest.raises(DataError, match=r"none of the 2 test photos can be read; put them there and run again"):
        _extract(many, split="test")
    assert not many.features_path("test").exists()

    restored = replace(dataset, root=many.root / "restored")
    shutil.copytree(dataset.root, restored.root)
    for image in restored.split("test"):
        shutil.copy(dataset.root / "val0.png", restored.root / image.path)
    assert len(load_feature_store(_extract(many, dataset=restored, split="test")).image_ids) == 2


def test_a_split_that_is_not_there_is_refused(many: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="data set 'tiny' has no 'dev' split; it has: test, train, val"):
        _extract(many, split="dev")


def test_features_are_loaded_with_the_model_that_made_them(many: Workspace) -> None:
    _extract(many)
    store, model = load_features(many, "val")

    assert len(store.image_ids) == VAL
    assert model.fingerprint == checkpoint(many, 1, "best").fingerprint


def test_features_that_are_not_there_are_refused_with_those_that_are(many: Workspace) -> None:
    with pytest.raises(WorkspaceError, match=r"val.h5: not found; run 'dpce extract-features --split val'$"):
        load_features(many, "val")
    _extract(many, split="train")
    with pytest.raises(WorkspaceError, match=r"--split val'; extracted are: train \(choose with --split\)$"):
        load_features(many, "val")
    with pytest.raises(WorkspaceError, match="has no 'dev' split; it has: test, train, val"):
        load_features(many, "dev")


def test_the_best_model_is_that_of_the_last_stage(many: Workspace) -> None:
    dataset = many.load_dataset()
    assert load_best(many, dataset, None).stage == 1
    with pytest.raises(CheckpointError, match="run 'dpce train-stage2' first"):
        load_best(many, dataset, 2)

    train(many, 2, dataset.config)
    assert load_best(many, dataset, None).stage == 2
    assert load_best(many, dataset, 1).stage == 1


def test_a_stage2_model_stands_alone_but_not_beside_another_stage1_model(many: Workspace) -> None:
    dataset = many.load_dataset()
    train(many, 2, dataset.config)
    train(many, 1, dataset.config.with_settings(["seed=8"]), fresh=True)
    with pytest.raises(CheckpointError, match=r"another Stage I model than .*run 'dpce train-stage2 --fresh'"):
        load_best(many, dataset, None)

    shutil.rmtree(many.stage_folder(1))
    assert load_best(many, dataset, None).stage == 2


def test_a_model_of_another_data_set_is_refused_only_where_that_matters(many: Workspace) -> None:
    changed = replace(many.load_dataset(), training_fingerprint="another")

    with pytest.raises(CheckpointError, match="had other training photos or captions"):
        load_best(many, changed, None)
    assert load_best(many, None, None).stage == 1


def _extract_share(root: Path, reporter_warnings: Path) -> None:
    workspace, reporter = Workspace(root), Recorder()
    with tiny_cnn():
        _extract(workspace, checkpoint(workspace, 1, "best"), reporter=reporter)
    if not rank():
        reporter_warnings.write_text("\n".join(reporter.warnings))


@pytest.mark.slow
def test_two_processes_extract_what_one_does(many: Workspace, tmp_path: Path) -> None:
    dataset = many.load_dataset()
    broken = [dataset.split("val")[index].path for index in (3, VAL - 2)]
    photos = shutil.copytree(dataset.root, tmp_path / "photos")
    for name in broken:
        (photos / name).write_bytes(b"")
    about = json.loads((many.folder / "dataset.json").read_text())
    (many.folder / "dataset.json").write_text(json.dumps({**about, "root": str(photos), "checksum": None}))
    shared = copy(many, tmp_path / "shared")
    whole = load_feature_store(_extract(many))
    in_processes(2, _extract_share, shared.root, tmp_path / "warnings")

    store = load_feature_store(shared.features_path("val"))
    torch.testing.assert_close(store.image_embeddings, whole.image_embeddings, atol=1e-6, rtol=0)
    torch.testing.assert_close(store.text_embeddings, whole.text_embeddings, atol=1e-6, rtol=0)
    assert (store.image_ids, store.captions, store.meta) == (whole.image_ids, whole.captions, whole.meta)
    assert len(store.image_ids) == VAL - 2
    warnings = (tmp_path / "warnings").read_text().splitlines()
    assert [any(name in warning for warning in warnings) for name in broken] == [True, True]
    assert len(warnings) == 3
