from __future__ import annotations

import pytest
import torch
from torch import nn

from dpce_cli.core.config import Config
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.presets import build_preset
from dpce_cli.core.training.averaging import WeightAverage, averaged
from tests.core.conftest import Trained
from tests.core.tiny import checkpoint, tiny_cnn, tiny_config, train


@pytest.fixture
def config() -> Config:
    return tiny_config(None, "stage1.average_decay=0.75")


@pytest.fixture
def model(config: Config) -> DualEncoder:
    with tiny_cnn():
        return DualEncoder(config, vocabulary_size=5, word_dim=12, instances=4)


def fill(model: DualEncoder, value: float) -> None:
    for tensor in model.state_dict().values():
        tensor.fill_(value)


def means(module: nn.Module) -> set[float]:
    return {float(parameter.detach().mean()) for parameter in module.parameters()}


def test_the_average_of_a_weight_is_that_of_its_values_with_falling_weights(model: DualEncoder, config: Config) -> None:
    fill(model, 1)
    average = WeightAverage(model, config.stage1, frozen_backbone=False)
    expected = 1.0
    for step in range(1, 50):
        fill(model, step)
        average.update(step)
        decay = min(0.75, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.values
    for value in average.values.values():
        torch.testing.assert_close(value, torch.full_like(value, expected))


def test_the_average_takes_the_models_place_for_a_while(model: DualEncoder, config: Config) -> None:
    fill(model, 1)
    average = WeightAverage(model, config.stage1, frozen_backbone=False)
    fill(model, 3)
    with average.in_place():
        assert means(model.text_encoder) == {1}
    assert means(model) == {3}


def test_classifier_and_frozen_cnn_are_not_averaged(model: DualEncoder, config: Config) -> None:
    learning, frozen = (averaged(model, config.stage1, frozen_backbone=frozen) for frozen in (False, True))
    assert {name.partition(".")[0] for name in learning} == {"image_encoder", "text_encoder"}
    assert {name for name in learning if name not in frozen} == {
        f"image_encoder.backbone.{name}"
        for name, value in model.image_encoder.backbone.state_dict().items()
        if value.is_floating_point()
    }
    assert "image_encoder.backbone.bn1.running_mean" in learning


def test_the_papers_presets_have_no_average(model: DualEncoder) -> None:
    paper = build_preset("paper-flickr30k").stage1
    average = WeightAverage(model, paper, frozen_backbone=False)
    fill(model, 2)
    average.update(1)
    with average.in_place():
        assert means(model) == {2}
    assert average.values == {}


def test_the_best_model_is_the_average_and_the_last_has_both(stage1: Trained, no_curves: None) -> None:
    train(stage1.workspace, 1, stage1.config.with_settings(["stage1.epochs=1"]), fresh=True)
    last, best = (checkpoint(stage1.workspace, 1, name) for name in ("last", "best"))
    assert best.averages == {}
    assert {name for name, value in last.averages.items() if not torch.equal(last.model[name], value)}
    assert last.averages.keys() < best.model.keys()
    assert all(torch.equal(best.model[name], value) for name, value in last.averages.items())
