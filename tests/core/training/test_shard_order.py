"""Training on photos in tar shards: which photos an epoch has in which order, and that they are these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpce_cli.core.config import Config
from dpce_cli.core.data.shards import extent, members, shard_name
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.processes.collectives import share
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.training import batches
from dpce_cli.core.training.batches import Batch, TrainingSet
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.feature_cache import FeatureCache
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.gloo import in_processes
from tests.core.tiny import BATCH, Recorder, prepare, tiny_cnn, tiny_config, tiny_images
from tests.tars import write_tar

PHOTOS, SHARDS = 26, 6
CONFIG = tiny_config(None, "model.position_shift=false", "stage1.epochs=20")


@pytest.fixture
def loose(tmp_path: Path, tiny_cnn: None) -> PreparedDataset:
    """Of photos that are 26 files."""
    images = [image for image in tiny_images(tmp_path, train=PHOTOS, val=0) if image.split == "train"]
    return prepare(Workspace(tmp_path / "loose"), tmp_path, images, CONFIG)


def in_shards(loose: PreparedDataset) -> PreparedDataset:
    """The same photos in 6 tars, the last of which has one."""
    images = []
    for start in range(0, PHOTOS, 5):
        shard, part = loose.root / f"{start}.tar", loose.images[start : start + 5]
        write_tar(shard, [(image.path, (loose.root / image.path).read_bytes()) for image in part])
        with open(shard, "rb") as file:
            places = [extent(file, member) for member in members(file)]
        images += [
            replace(image, path=f"{shard.name}/{image.path}", extent=place)
            for image, place in zip(part, places, strict=True)
        ]
    return replace(loose, images=tuple(images))


def training_set(
    dataset: PreparedDataset, config: Config = CONFIG, *, cache: FeatureCache | None = None, workers: int = 0
) -> TrainingSet:
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone="resnet34", embedding_dim=4).eval()
    return TrainingSet(
        dataset, config, dataset.vocabulary, encoder, stage=1, cache=cache, workers=workers, reporter=Recorder()
    )


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.as_tensor(getattr(a, field.name)).equal(torch.as_tensor(getattr(b, field.name)))
        for a, b in zip(first, second, strict=True)
        for field in fields(Batch)
    )


def order(photos: TrainingSet, epoch: int) -> list[int]:
    return torch.cat([batch.rows for batch in photos.batches(epoch)]).tolist()


def test_loose_photos_come_in_an_order_that_has_not_changed(loose: PreparedDataset) -> None:
    """What was interrupted before there were shards goes on with the same photos."""
    for epoch in range(2):
        expected = torch.randperm(PHOTOS, generator=generator_for(CONFIG.seed, 1, epoch)).tolist()
        assert order(training_set(loose), epoch) == expected[: PHOTOS // BATCH * BATCH]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_photos_of_few_shards_make_the_batches_of_the_same_loose_photos(
    loose: PreparedDataset, workers: int
) -> None:
    stored = training_set(in_shards(loose), workers=workers)
    for epoch in range(2):
        assert same(list(stored.batches(epoch)), list(training_set(loose).batches(epoch)))


def test_photos_are_mixed_among_some_shards_at_a_time(loose: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SHARDS_READ_TOGETHER", 2)
    config = CONFIG.with_settings(["stage1.batch_size=13"])
    dataset = in_shards(loose)
    shards = [shard_name(image.path) for image in dataset.images]
    together, orders = set(), set()
    for epoch in range(20):
        rows = order(training_set(dataset, config), epoch)
        assert sorted(rows) == list(range(PHOTOS))
        orders.add(tuple(rows))
        runs = [shards[row] for row in rows]
        assert len(list(groupby(runs))) > SHARDS  # the photos of two shards alternate
        met = list(dict.fromkeys(runs))
        for first, second in zip(met[::2], met[1::2], strict=True):
            start, photos = runs.index(first), runs.count(first) + runs.count(second)
            assert set(runs[start : start + photos]) == {first, second}
            together.add(frozenset((first, second)))
    assert len(orders) == 20
    assert len(together) > 10  # of 15 pairs


@pytest.mark.parametrize("first_step", [0, 1, 4])
def test_continuing_at_a_step_gives_the_remaining_batches(
    loose: PreparedDataset, monkeypatch: pytest.MonkeyPatch, first_step: int
) -> None:
    monkeypatch.setattr(batches, "SHARDS_READ_TOGETHER", 2)
    photos = training_set(in_shards(loose))
    whole = list(photos.batches(0))
    assert len(whole) == PHOTOS // BATCH
    assert same(list(photos.batches(0, first_step)), whole[first_step:])


def test_cached_features_come_in_the_order_of_loose_ones(
    loose: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "SHARDS_READ_TOGETHER", 1)
    cached, stored = (
        list(training_set(dataset, cache=FeatureCache(Workspace(tmp_path / "loose"))).batches(0))
        for dataset in (loose, in_shards(loose))
    )
    assert same(cached, stored)


def test_a_damaged_photo_and_a_changed_shard_are_named_and_left_out(loose: PreparedDataset) -> None:
    (loose.root / loose.images[3].path).write_bytes(b"no photo")
    dataset = in_shards(loose)
    write_tar(loose.root / "5.tar", [("another.png", b"")])
    photos = training_set(dataset)
    visited = {row for epoch in range(5) for row in order(photos, epoch)}
    assert visited == set(range(PHOTOS)) - {3, 5, 6, 7, 8, 9}
    assert isinstance(photos.reporter, Recorder)
    reasons = sorted(warning.partition(": ")[2] for warning in photos.reporter.warnings)
    assert reasons[0].startswith("not a JPEG, PNG")
    assert all("run 'dpce prepare-vocab webdataset' again: skipped" in reason for reason in reasons[1:])
    assert len(reasons) == 6


def _check_share(dataset: PreparedDataset, expected: list[tuple[Tensor, Tensor]]) -> None:
    with tiny_cnn():
        batches.SHARDS_READ_TOGETHER = 2
        for batch, (rows, images) in zip(training_set(dataset).batches(0), expected, strict=True):
            assert batch.rows.equal(rows)
            assert batch.images.equal(images[share(len(rows))])
            assert len(batch.images) == BATCH // 2


@pytest.mark.slow
def test_two_processes_read_a_half_of_each_batch_each(loose: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SHARDS_READ_TOGETHER", 2)
    dataset = in_shards(loose)
    expected = [(batch.rows, batch.images) for batch in training_set(dataset).batches(0)]
    in_processes(2, _check_share, dataset, expected)
