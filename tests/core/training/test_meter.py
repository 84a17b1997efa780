from __future__ import annotations

import json
import time

import pytest
import torch

from dpce_cli.core.training.meter import Meter
from tests.core.conftest import Trained
from tests.core.tiny import train


def test_means_are_over_steps_and_parts_of_a_step_add_up() -> None:
    meter = Meter(1, {"loss": torch.tensor(5.0)})
    for share, value in ((0.25, 1.0), (0.75, 3.0)):
        meter.add({"loss": torch.tensor(share * value), "accuracy": torch.tensor(share)}, photos=4)
    meter.steps += 1
    means, _, _ = meter.read()
    assert means == {"loss": (5 + 2.5) / 2, "accuracy": 0.5}
    assert (meter.steps, meter.sums) == (0, {})


def test_the_time_that_batches_take_is_a_share_of_the_whole() -> None:
    def batches() -> list[int]:
        time.sleep(0.03)
        return [1, 2, 3]

    meter = Meter(0, {})
    for batch in meter.waiting(number for _ in range(2) for number in batches()):
        time.sleep(0.01)
        meter.add({}, photos=batch)
        meter.steps += 1
    _, speed, waited = meter.read()
    assert 0.3 < waited < 0.8
    assert 12 / 0.5 < speed < 12 / 0.12


@pytest.mark.usefixtures("no_curves")
def test_a_run_records_where_its_time_went(stage1: Trained) -> None:
    train(stage1.workspace, 1, stage1.config, fresh=True)
    lines = (stage1.workspace.stage_folder(1) / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert record["images_per_second"] > 0
    assert 0 < record["data_wait"] < 1
    assert record["gradient_norm"] > 0
