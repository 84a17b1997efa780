from __future__ import annotations

from dataclasses import replace

from torch import nn

from dpce_cli.core.presets import build_preset
from dpce_cli.core.training.optimisation import ParameterGroup
from dpce_cli.core.training.report import log_fields, optimisation_lines


def test_a_line_of_the_log_is_short() -> None:
    record = {
        "ranking_loss": 0.1234,
        "image_accuracy": 0.25,
        "learning_rate": 0.00123,
        "gradient_norm": 12.345,
        "loss_scale": 65536.0,
        "device_memory": 3.5 * 2**30,
        "data_wait": 0.031,
        "images_per_second": 412.3,
    }
    assert list(map(" ".join, log_fields(record).items())) == [
        "ranking loss 0.123",
        "image accuracy 25.0%",
        "lr 0.0012",
        "grad 12",
        "scale 65536",
        "memory 3.5GiB",
        "data wait 3%",
        "img/s 412",
    ]


def test_a_run_begins_with_what_every_group_learns_at() -> None:
    stage = build_preset("paper-flickr30k").stage1
    groups = [ParameterGroup("weight", 0.1, [nn.Parameter()]), ParameterGroup("backbone", 0, [])]
    first, *rest = optimisation_lines(stage, groups)
    assert first == "sgd, base learning rate 0.1, steps schedule; per group:"
    assert [line.split() for line in rest] == [
        ["weight", "0", "parameters", "lr", "0.01"],
        ["backbone", "0", "parameters", "lr", "frozen"],
    ]
    first = next(iter(optimisation_lines(replace(stage, accumulation_steps=4, clip_norm=2.0), [])))
    assert first == (
        "sgd, base learning rate 0.1, steps schedule, batches in 4 parts, gradient norm up to 2; per group:"
    )
