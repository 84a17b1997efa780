from __future__ import annotations

import pytest

from dpce_cli.core.presets import build_preset
from dpce_cli.core.training.forecast import Forecast, forecast


def forecast_of(*settings: str, feature_cache: bool = True, processes: int = 1) -> Forecast:
    config = build_preset("paper-coco").with_settings(
        ["image.backbone=resnet18", "model.embedding_dim=64", "stage1.batch_size=4", *settings]
    )
    return forecast(
        config, stage=1, images=1000, captions_per_image=5, vocabulary=300, processes=processes,
        feature_cache=feature_cache,
    )  # fmt: skip


def test_a_frozen_cnn_has_no_state_in_the_checkpoint_and_features_in_the_cache() -> None:
    cached, photos = forecast_of(), forecast_of(feature_cache=False)
    learning = forecast_of("stage1.multipliers.backbone=1")
    assert cached.disk["last.pt"] == photos.disk["last.pt"] < learning.disk["last.pt"]
    assert cached.disk["best.pt"] == learning.disk["best.pt"] < photos.disk["last.pt"]
    assert "cached features" not in photos.disk | learning.disk
    assert cached.disk["cached features"] > 0


def test_a_rate_for_biases_that_a_cnn_does_not_have_leaves_it_frozen() -> None:
    assert forecast_of("stage1.multipliers.backbone_bias=1") == forecast_of()
    assert "cached features" not in forecast_of("stage1.multipliers.backbone_bias=1", "image.backbone=vgg16").disk


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 1), ("adamw", 2)])
def test_the_first_process_gathers_the_classes_with_their_state(optimizer: str, states: int) -> None:
    assert forecast_of(f"stage1.optimizer={optimizer}", processes=2).gathered == 1000 * 64 * 4 * (1 + states)
    assert forecast_of(f"stage1.optimizer={optimizer}").gathered == 0
