from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import Tensor

from dpce_cli.core.config import ImageConfig
from dpce_cli.core.data.images import load_image, mirrored, plain_view
from dpce_cli.core.data.loading import read_views
from dpce_cli.core.data.records import CaptionedImage
from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.workspace import feature_cache
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.feature_cache import FeatureCache, Kind, _meta, cached_features, cached_test_features
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import TRAIN, Recorder, prepare, records, tiny_config, tiny_images, train


@dataclass(kw_only=True)
class Case:
    """All that decides what is cached; its photos may be changed."""

    workspace: Workspace
    dataset: PreparedDataset
    encoder: ImageEncoder
    kind: Kind = "pooled"
    computed_in: torch.dtype = torch.float32
    reporter: Recorder = field(default_factory=Recorder)

    def features(self, split: str = "train", config: ImageConfig | None = None) -> Tensor:
        return cached_features(
            FeatureCache(self.workspace, self.kind, self.computed_in),
            self.dataset,
            self.encoder,
            config or self.dataset.config.image,
            split=split,
            workers=0,
            reporter=self.reporter,
        )

    def files(self) -> list[str]:
        return sorted(name for name in os.listdir(self.workspace.folder / "cache") if not name.startswith("."))

    def photos(self) -> list[Path]:
        return [self.dataset.root / image.path for image in self.dataset.split("train")]


@pytest.fixture
def case(tmp_path: Path, weights: Path, tiny_cnn: None) -> Case:
    return _case(tmp_path / "workspace", tmp_path / "photos", weights)


def _case(folder: Path, root: Path, weights: Path) -> Case:
    workspace = Workspace(folder)
    dataset = prepare(workspace, root, tiny_images(root), tiny_config(weights))
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone="resnet34", embedding_dim=4)
    state = torch.load(weights, weights_only=True)
    encoder.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    return Case(workspace=workspace, dataset=dataset, encoder=encoder)


def test_the_first_views_are_the_photo_and_its_mirror_image(case: Case) -> None:
    config = replace(case.dataset.config.image, mirror=True, cached_crops=3)
    features = case.features(config=config)
    assert (features.shape, features.dtype) == ((TRAIN, 5, 32), torch.float16)
    plain = torch.stack([plain_view(load_image(path), resize=40, crop=32) for path in case.photos()])
    with torch.inference_mode():
        expected = [case.encoder.pooled_features(views) for views in (plain, mirrored(plain))]
    assert torch.allclose(features[:, 0].float(), expected[0], rtol=1e-3, atol=1e-3)
    assert torch.allclose(features[:, 1].float(), expected[1], rtol=1e-3, atol=1e-3)
    assert all(not torch.equal(features[:, 0], features[:, view]) for view in range(1, 5))
    assert not torch.equal(features[:, 3], features[:, 4])


def test_only_the_training_split_has_random_crops(case: Case) -> None:
    config = replace(case.dataset.config.image, cached_crops=3)
    assert case.features("train", config).shape[1] == 4
    assert case.features("val", config).shape[1] == 1


def test_what_is_cached_is_read_without_the_photos(case: Case) -> None:
    before = case.features()
    for photo in case.photos():
        photo.unlink()
    assert torch.equal(case.features(), before)
    assert case.reporter.warnings == []
    assert len(case.reporter.notes) == 1


def test_training_on_cached_features_needs_no_photo(case: Case) -> None:
    config = case.dataset.config
    train(case.workspace, 1, config)
    whole = records(case.workspace, 1)
    for photo in case.dataset.root.iterdir():
        photo.unlink()
    train(case.workspace, 1, config, fresh=True, reporter=case.reporter)
    assert records(case.workspace, 1) == whole
    assert case.reporter.warnings == []


@pytest.mark.parametrize("batches", [1, 2])
def test_an_interrupted_computation_goes_on_where_it_stopped(
    case: Case, tmp_path: Path, weights: Path, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_BATCH", 5)
    whole = _case(tmp_path / "whole", case.dataset.root, weights)
    expected = whole.features()
    read: list[CaptionedImage] = []

    def interrupted(root: Path, images: list[CaptionedImage], *rest: Any, **options: Any) -> Iterator[Any]:
        read.extend(images)
        for index, batch in enumerate(read_views(root, images, *rest, **options)):
            if index == batches and len(read) == TRAIN:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(feature_cache, "read_views", interrupted)
    with pytest.raises(KeyboardInterrupt):
        case.features()
    assert [name.endswith(".partial") for name in case.files()] == [True]
    case.photos()[0].unlink()
    assert torch.equal(case.features(), expected)
    assert read[TRAIN:] == read[5 * batches : TRAIN]
    assert case.files() == whole.files()
    path = case.workspace.folder / "cache" / case.files()[0]
    assert path.read_bytes() == (whole.workspace.folder / "cache" / whole.files()[0]).read_bytes()


def test_features_are_computed_again_for_another_cnn_configuration_or_data_set(case: Case, tmp_path: Path) -> None:
    case.features()
    case.features()
    assert len(case.files()) == 1
    image = case.dataset.config.image
    for change in ({"mirror": True}, {"resize": 48}, {"cached_crops": 2}, {"min_crop_scale": 0.5}):
        case.features(config=replace(image, **change))
    assert len(case.files()) == 5
    with torch.no_grad():
        next(case.encoder.backbone.parameters()).view(-1)[0] += 1e-3
    case.features()
    assert len(case.files()) == 6
    case.dataset = replace(case.dataset, images=case.dataset.images[::-1])
    case.features()
    assert len(case.files()) == 7
    moved = tuple(replace(image, extent=(512, 9, 3)) for image in case.dataset.images)  # within a shard
    case.dataset = replace(case.dataset, images=moved)
    case.features()
    assert len(case.files()) == 8
    case.dataset.root.rename(tmp_path / "moved")
    case.dataset = replace(case.dataset, root=tmp_path / "moved")
    notes = len(case.reporter.notes)
    case.features()
    assert (len(case.files()), len(case.reporter.notes)) == (8, notes)
    case.encoder.head[0].weight.data.zero_()  # type: ignore[operator]
    case.features("val")
    case.features()
    assert len(case.files()) == 9


def test_the_cnn_computes_with_fixed_batch_norm_and_keeps_its_state(case: Case) -> None:
    case.encoder.train()
    before = {key: value.clone() for key, value in case.encoder.state_dict().items()}
    case.features()
    after = case.encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_photo_that_cannot_be_read_is_a_row_of_zeros_and_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "_BATCH", 5)
    expected = case.features().clone()
    (case.workspace.folder / "cache" / case.files()[0]).unlink()
    broken = case.photos()[6]
    broken.write_bytes(b"no image")
    features = case.features()
    assert not features[6].any()
    rest = torch.arange(TRAIN) != 6
    assert torch.allclose(features[rest].float(), expected[rest].float(), rtol=1e-2, atol=1e-3)
    assert re.match(rf"{broken}: not a .*: skipped", case.reporter.warnings[0])
    again = f"1 of {TRAIN} train photos could not be read and are left out; to try them again, delete "
    assert case.reporter.warnings[1].startswith(again)
    case.features()
    assert case.reporter.warnings[2:] == case.reporter.warnings[1:2]


def test_photos_that_cannot_be_read_are_left_out_of_training_and_validation(case: Case) -> None:
    (case.dataset.root / "train3.png").unlink()
    (case.dataset.root / "val0.png").write_bytes(b"")
    result = train(case.workspace, 1, case.dataset.config, reporter=case.reporter)
    assert {record["step"] for record in records(case.workspace, 1, "train")} == {2, 4, 6}
    assert result.validation["rsum"] > 0
    named = [re.sub(r"[:;].*", "", warning.replace(f"{case.dataset.root}/", "")) for warning in case.reporter.warnings]
    assert named == [
        "train3.png",
        "1 of 12 train photos could not be read and are left out",
        "val0.png",
        "1 of 6 val photos could not be read and are left out",
    ]


def test_photos_that_are_all_missing_are_an_error_and_not_remembered(case: Case) -> None:
    case.dataset.root.rename(case.dataset.root.with_name("elsewhere"))
    with pytest.raises(DataError, match=r"photos: the folder of the photos is not there; put it back"):
        case.features()
    case.dataset.root.mkdir()
    with pytest.raises(
        DataError, match=r"photos: none of the 12 train photos can be read; put them there and run again"
    ):
        case.features()
    assert case.files() == []
    case.dataset.root.with_name("elsewhere").rename(case.dataset.root)
    assert case.features().any(2).all()


def test_a_photo_that_is_replaced_has_the_features_of_all_computed_again(case: Case) -> None:
    before = case.features().clone()
    load_image(case.photos()[0]).rotate(180).save(case.photos()[1])
    after = case.features()
    assert len(case.reporter.notes) == 2
    assert not torch.equal(after[1], before[1])
    assert torch.allclose(after[2:].float(), before[2:].float(), rtol=1e-2, atol=1e-3)
    case.features()
    assert len(case.reporter.notes) == 2


def test_a_damaged_cache_says_what_to_do(case: Case) -> None:
    case.features()
    path = case.workspace.folder / "cache" / case.files()[0]
    with h5py.File(path) as file:
        offset = file["features"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"damaged.*delete it and run `dpce train-stage1` again"):
        case.features()


def cut_case(case: Case, place: str = "bn1") -> Case:
    encoder = ImageEncoder(backbone="resnet34", embedding_dim=4, crop=32, frozen_until=place)
    encoder.load_state_dict(case.encoder.state_dict())
    return replace(case, encoder=encoder, kind="maps")


def test_the_maps_of_a_lower_part_are_cached_until_that_part_changes(case: Case) -> None:
    cut = cut_case(case)
    maps = cut.features()
    assert (maps.shape, maps.dtype) == ((TRAIN, 2, 16, 16, 16), torch.float16)
    plain = torch.stack([plain_view(load_image(path), resize=40, crop=32) for path in case.photos()])
    with torch.inference_mode():
        assert torch.allclose(maps[:, 0].float(), cut.encoder.frozen_maps(plain), rtol=1e-3, atol=1e-3)
    backbone = cut.encoder.backbone
    with torch.no_grad():
        backbone.get_parameter("conv2.weight").add_(1)
    cut.features()
    assert len(cut.files()) == 1
    cut_case(cut, "conv1").features()
    assert len(cut.files()) == 2
    with torch.no_grad():
        backbone.get_parameter("conv1.weight").add_(1)
    cut.features()
    assert len(cut.files()) == 3


def test_the_pooled_features_of_a_cut_cnn_come_from_its_maps(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "_BATCH", 5)
    case.photos()[6].write_bytes(b"no image")
    expected = case.features().clone()
    (pooled,) = case.files()
    (case.workspace.folder / "cache" / pooled).unlink()
    cut = cut_case(case)
    maps = cut.features()
    monkeypatch.delattr(feature_cache, "read_views")
    features = replace(cut, kind="pooled").features()
    assert not maps[6].any()
    assert not features[6].any()
    assert torch.allclose(features.float(), expected.float(), rtol=1e-2, atol=1e-3)
    assert pooled in case.files()
    assert len(case.files()) == 2


def test_features_in_float32_are_used_for_any_precision_and_no_others(case: Case) -> None:
    cut = cut_case(case)
    lower = replace(cut, computed_in=torch.bfloat16)
    rounded = lower.features()
    exact = cut.features()
    assert len(case.files()) == 2
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    assert lower.features().equal(exact)
    assert len(case.files()) == 2


def test_the_cached_maps_embed_the_photos_of_a_split(case: Case) -> None:
    cut = cut_case(case)
    config = replace(case.dataset.config.image, frozen_until="bn1", mirror=True)

    def found(computed_in: torch.dtype = torch.float32) -> Tensor | None:
        return cached_test_features(
            case.workspace, case.dataset, cut.encoder, config, split="val", computed_in=computed_in
        )

    assert found() is None
    rounded = replace(cut, computed_in=torch.bfloat16).features("val", config)
    assert found() is None
    assert _equal(found(torch.bfloat16), rounded)
    assert found(torch.float16) is None
    maps = cut.features("val", config)
    assert _equal(found(), maps)
    assert _equal(found(torch.bfloat16), maps)
    pooled = case.features("val", config)
    assert _equal(found(), pooled)


def _equal(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and found.equal(expected)


def test_a_cache_depends_on_the_pooling_and_one_made_before_there_was_this_setting_stays_valid(case: Case) -> None:
    image = case.dataset.config.image
    plain, cells = (
        _meta(FeatureCache(case.workspace, "pooled"), case.encoder, replace(image, pooling=pooling), 0)
        for pooling in ((1, 1), (1, 2))
    )
    assert "pooling" not in plain["image"]
    assert json.loads(json.dumps(cells)) == cells != plain
