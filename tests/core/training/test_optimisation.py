from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dpce_cli.core.config import LearningRates, StageConfig
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.presets import PRESETS, build_preset
from dpce_cli.core.training.optimisation import (
    build_optimizer,
    first_and_highest_rate,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)

RATES = LearningRates(
    backbone=0.001, backbone_bias=0.02, weight=0.1, bias=2, bn_scale=0.2, bn_shift=0.3, words=0.004,
    classifier=0.01, classifier_bias=0.05,
)  # fmt: skip


def build(backbone: str = "resnet18", *settings: str) -> DualEncoder:
    config = build_preset("paper-flickr30k").with_settings(
        [f"image.backbone={backbone}", "model.embedding_dim=8", "model.text_width=0.02", *settings]
    )
    with torch.device("meta"):
        return DualEncoder(config, vocabulary_size=11, word_dim=5, instances=7)


def members(model: DualEncoder) -> dict[str, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        group.name: {names[parameter] for parameter in group.parameters} for group in parameter_groups(model, RATES)
    }


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50-v1", "vgg16"])
def test_every_parameter_is_in_exactly_one_group(backbone: str) -> None:
    model = build(backbone)
    grouped = [parameter for group in parameter_groups(model, RATES) for parameter in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(model.parameters())
    assert sum(group.size for group in parameter_groups(model, RATES)) == sum(p.numel() for p in model.parameters())


def test_groups_have_the_multipliers_of_their_names() -> None:
    assert {group.name: group.multiplier for group in parameter_groups(build("vgg16"), RATES)} == vars(RATES)


def test_parameters_are_grouped_by_kind() -> None:
    groups = members(build())
    assert groups["words"] == {"text_encoder.words.weight"}
    assert groups["classifier"] == {"shared_classifier.weight"}
    assert groups["classifier_bias"] == {"shared_classifier.bias"}
    assert groups["bias"] == {"text_encoder.word_bias"}
    assert {"image_encoder.head.0.weight", "image_encoder.head.3.weight", "text_encoder.linear.weight"} < groups[
        "weight"
    ]
    assert {"text_encoder.blocks.0.conv2.weight", "text_encoder.blocks.0.shortcut.0.weight"} < groups["weight"]
    assert {"text_encoder.word_bn.weight", "text_encoder.bn.weight", "image_encoder.head.4.weight"} < groups["bn_scale"]
    assert groups["bn_shift"] == {name.removesuffix("weight") + "bias" for name in groups["bn_scale"]}
    backbone = {name for name, _ in build().named_parameters() if name.startswith("image_encoder.backbone.")}
    assert groups["backbone"] == backbone
    assert "image_encoder.backbone.bn1.bias" in backbone


def test_biases_of_a_vgg_have_their_own_rate() -> None:
    groups = members(build("vgg16"))
    assert len(groups["backbone"]) == len(groups["backbone_bias"]) == 13 + 2
    assert all(name.endswith("bias") for name in groups["backbone_bias"])


def test_a_classifier_without_bias_has_no_group_for_it() -> None:
    assert "classifier_bias" not in members(build("resnet18", "model.classifier_bias=false"))


def test_frozen_groups_do_not_learn_and_the_others_do() -> None:
    model = build("vgg16")
    stage = replace(build_preset("paper-flickr30k").stage1, multipliers=replace(RATES, backbone=0, words=0))
    groups = parameter_groups(model, stage.multipliers)
    optimizer = build_optimizer(groups, stage)
    learning = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for group in groups:
        frozen = group.name in ("backbone", "words")
        assert all(parameter.requires_grad != frozen for parameter in group.parameters)
        assert all((parameter in learning) != frozen for parameter in group.parameters)


def test_a_group_that_was_frozen_in_stage_1_learns_in_stage_2() -> None:
    model, config = build(), build_preset("paper-flickr30k")
    for stage, learns in ((config.stage1, False), (config.stage2, True)):
        build_optimizer(parameter_groups(model, stage.multipliers), stage)
        assert {parameter.requires_grad for parameter in model.image_encoder.backbone.parameters()} == {learns}


def test_the_paper_optimizer_is_nesterov_sgd() -> None:
    stage = build_preset("paper-flickr30k").stage1
    optimizer = build_optimizer(parameter_groups(build(), stage.multipliers), stage)
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 1e-4)


def test_adamw_decays_weights_as_configured() -> None:
    stage = replace(build_preset("flickr8k").stage1, weight_decay=0.03)
    optimizer = build_optimizer(parameter_groups(build(), stage.multipliers), stage)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.03}


def test_setting_the_learning_rate_gives_each_group_its_multiple() -> None:
    model, stage = build("vgg16"), replace(build_preset("paper-flickr30k").stage2, multipliers=RATES)
    optimizer = build_optimizer(parameter_groups(model, RATES), stage)
    set_learning_rate(optimizer, 0.5)
    assert sorted(group["lr"] for group in optimizer.param_groups) == sorted(
        0.5 * rate for rate in vars(RATES).values()
    )
    set_learning_rate(optimizer, 0.25)
    assert sorted(group["lr"] for group in optimizer.param_groups) == sorted(0.25 * r for r in vars(RATES).values())


def test_a_step_moves_a_parameter_by_its_groups_rate() -> None:
    layer = nn.Parameter(torch.ones(2))
    stage = replace(build_preset("paper-flickr30k").stage1, weight_decay=0.0)
    optimizer = torch.optim.SGD([{"params": [layer], "multiplier": 0.1}], lr=stage.learning_rate)
    set_learning_rate(optimizer, 0.1)
    layer.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(layer.data, torch.full((2,), 0.99))


def steps_stage(milestones: tuple[int, ...]) -> StageConfig:
    return replace(build_preset("paper-flickr30k").stage2, milestones=milestones)


def cosine_stage(warmup_epochs: float, epochs: int = 4) -> StageConfig:
    stage = build_preset("flickr8k").stage1
    return replace(stage, learning_rate=0.2, warmup_epochs=warmup_epochs, epochs=epochs)


def test_the_steps_schedule_divides_by_10_after_each_milestone() -> None:
    stage = steps_stage((2, 5))
    rates = [learning_rate(stage, step, 10) for step in (0, 19, 20, 49, 50, 1000)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert learning_rate(steps_stage(()), 10_000, 10) == 0.1


def test_the_cosine_schedule_falls_from_the_base_rate_to_nearly_0() -> None:
    stage = cosine_stage(0)
    rates = [learning_rate(stage, step, 10) for step in range(40)]
    assert rates[0] == 0.2
    assert rates[20] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.2 * 0.5 * (1 + math.sqrt(0.5)))
    assert 0 < rates[-1] < 0.002 * 0.2
    assert rates == sorted(rates, reverse=True)


def test_warm_up_rises_linearly_and_is_then_over() -> None:
    warm, cold = cosine_stage(1), cosine_stage(0)
    factors = [learning_rate(warm, step, 10) / learning_rate(cold, step, 10) for step in range(40)]
    assert factors == pytest.approx([*(step / 10 for step in range(1, 11)), *[1] * 30])


def test_the_steps_schedule_warms_up_too() -> None:
    stage = replace(steps_stage((2,)), warmup_epochs=0.5)
    rates = [learning_rate(stage, step, 10) for step in (0, 3, 4, 19, 20)]
    assert rates == pytest.approx([0.02, 0.08, 0.1, 0.1, 0.01])


def test_warm_up_may_end_within_an_epoch() -> None:
    warm, cold = cosine_stage(0.5), cosine_stage(0)
    factors = [learning_rate(warm, step, 4) / learning_rate(cold, step, 4) for step in range(4)]
    assert factors == pytest.approx([0.5, 1, 1, 1])


@pytest.mark.parametrize("name", PRESETS)
def test_no_step_of_a_preset_has_a_rate_of_0(name: str) -> None:
    config = build_preset(name)
    for stage in (config.stage1, config.stage2):
        assert min(learning_rate(stage, step, 3) for step in range(3 * stage.epochs)) > 0


@pytest.mark.parametrize("stage", [cosine_stage(1.3), cosine_stage(0), cosine_stage(3.9), steps_stage((2, 3))])
def test_the_first_and_the_highest_rate_are_those_of_all_steps(stage: StageConfig) -> None:
    rates = [learning_rate(stage, step, 7) for step in range(7 * stage.epochs)]
    assert first_and_highest_rate(stage, 7) == (rates[0], max(rates))
