from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.command_line import Outcome, dpce, read_checkpoint, succeed


def _train(workspace: Path, *arguments: str) -> Outcome:
    return dpce("train-stage2", "--workers", "0", *arguments, workspace=workspace)


@pytest.fixture
def stage1_only(workspace: Path) -> Path:
    shutil.rmtree(workspace / "scenes" / "stage2")
    return workspace


def test_stage2_begins_from_stage1s_best_model(stage1_only: Path) -> None:
    outcome = _train(stage1_only)
    folder = stage1_only / "scenes" / "stage2"

    assert outcome.code == 0
    best, curves, then = outcome.stdout.splitlines()
    assert re.fullmatch(rf"best model: {folder}/best\.pt \(validation RSUM \d+\.\d in epoch 1\)", best)
    assert [curves, then] == [f"curves: {folder}/curves.png", "next: dpce extract-features"]
    assert "| ranking loss " in outcome.stderr
    first = read_checkpoint(stage1_only / "scenes" / "stage1" / "best.pt")
    second = read_checkpoint(folder / "best.pt")
    assert (second.stage, second.parent) == (2, first.fingerprint)
    assert second.fingerprint != first.fingerprint


def test_stage2_takes_its_own_settings(stage1_only: Path) -> None:
    arguments = ("--epochs", "2", "--set", "stage2.margin=0.1", "--set", "stage2.captions_per_image=1",
                 "--set", "stage2.negatives=hardest_in_pool", "--set", "stage2.negative_pool=8")  # fmt: skip
    assert _train(stage1_only, *arguments).code == 0

    config = read_checkpoint(stage1_only / "scenes" / "stage2" / "last.pt").config
    assert (config.stage2.epochs, config.stage2.margin, config.stage2.negative_pool) == (2, 0.1, 8)


def test_settings_of_stage1_are_refused(stage1_only: Path) -> None:
    error = _train(stage1_only, "--set", "model.dropout=0.5").error

    expected = (
        "--set model.dropout: 0.1 -> 0.5: Stage I decided that; train-stage2 takes stage2.* and image.frozen_until only"
    )
    assert expected in error
    assert not (stage1_only / "scenes" / "stage2").exists()


def test_a_diverging_loss_ends_the_run_and_names_the_step(stage1_only: Path) -> None:
    error = _train(stage1_only, "--set", "stage2.learning_rate=1e30").error

    assert re.match(r"Error: stage 2, step \d+: ", error)
    assert not list((stage1_only / "scenes" / "stage2").glob("*.pt"))


def test_stage2_of_another_stage1_model_is_not_continued(workspace: Path) -> None:
    succeed("train-stage1", "--workers", "0", "--seed", "3", "--fresh", workspace=workspace)

    assert "cannot be continued with other settings: seed: 0 -> 3; the Stage I model" in _train(workspace).error
    assert _train(workspace, "--fresh").code == 0


@pytest.mark.parametrize("arguments", [("--epochs", "0"), ("--seed", "1"), ("--backbone", "resnet18")])
def test_a_wrong_command_line_exits_with_2(workspace: Path, arguments: tuple[str, ...]) -> None:
    outcome = _train(workspace, *arguments)

    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: dpce train-stage2" in outcome.stderr


def test_the_plan_is_printed_and_nothing_is_trained(workspace: Path) -> None:
    before = (workspace / "scenes" / "stage2" / "best.pt").stat()
    outcome = dpce("train-stage2", "--show-config", "--set", "stage2.margin=0.3", "--fresh", workspace=workspace)

    assert (outcome.code, outcome.stderr) == (0, "")
    assert "\nstage2.margin=0.3\n" in outcome.stdout
    assert "\nclasses: 12\n" in outcome.stdout
    assert (workspace / "scenes" / "stage2" / "best.pt").stat() == before


def test_from_scratch_there_is_one_stage_and_no_other_model(prepared: Path) -> None:
    outcome = _train(prepared, "--from-scratch", "--set", "model.dropout=0.5", "--set", "stage2.image_weight=0")

    assert outcome.code == 0, outcome
    made = read_checkpoint(prepared / "scenes" / "stage2" / "best.pt")
    assert (made.stage, made.parent, made.word_vectors) == (2, "", "word2vec trained on the captions")
    assert (made.config.model.dropout, made.config.stage2.image_weight) == (0.5, 0)
    assert not (prepared / "scenes" / "stage1").exists()
    succeed("extract-features", "--workers", "0", workspace=prepared)
    plan = succeed("train-stage2", "--from-scratch", "--show-config", workspace=prepared).stdout
    assert "\nclasses: 12\n" in plan

    frozen = ("--set", "stage2.multipliers.backbone=0", "--fresh")
    assert "--set stage2.multipliers.backbone=1" in _train(prepared, "--from-scratch", *frozen).error


def test_a_run_from_scratch_is_not_continued_from_stage1(workspace: Path) -> None:
    error = _train(workspace, "--from-scratch").error
    assert "last.pt: cannot be continued with other settings: the Stage I model" in error
    assert _train(workspace, "--from-scratch", "--fresh").code == 0
    succeed("extract-features", "--workers", "0", workspace=workspace)
    assert "the Stage I model" in _train(workspace).error
