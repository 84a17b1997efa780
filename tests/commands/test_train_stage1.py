from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dpce_cli.core.workspace.checkpoint import Checkpoint
from tests.command_line import SCENES, Outcome, dpce, read_checkpoint, succeed
from tests.core.tiny import TinyCNN, save_weights

LOG_LINE = re.compile(r"stage 1 epoch (\d+)/(\d+) \| step (\d+)/(\d+) \| loss \d+\.\d{3} \| .* \| img/s \d+ \| eta \w+")


def _train(workspace: Path, *arguments: str) -> Outcome:
    return dpce("train-stage1", "--workers", "0", *arguments, workspace=workspace)


def _checkpoint(workspace: Path, name: str = "best") -> Checkpoint:
    return read_checkpoint(workspace / "scenes" / "stage1" / f"{name}.pt")


def _records(workspace: Path) -> list[dict[str, Any]]:
    lines = (workspace / "scenes" / "stage1" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_stage1_leaves_checkpoints_curves_and_metrics(prepared: Path) -> None:
    outcome = _train(prepared)
    folder = prepared / "scenes" / "stage1"

    assert outcome.code == 0
    best, curves, then = outcome.stdout.splitlines()
    assert re.fullmatch(rf"best model: {folder}/best\.pt \(validation RSUM \d+\.\d in epoch 1\)", best)
    assert [curves, then] == [f"curves: {folder}/curves.png", "next: dpce train-stage2"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.pt", "curves.png", "last.pt", "lock", "metrics.jsonl", "tensorboard",
    ]  # fmt: skip
    assert [(record["kind"], record["step"]) for record in _records(prepared)] == [("train", 3), ("validation", 3)]
    checkpoint = _checkpoint(prepared)
    assert (checkpoint.stage, checkpoint.dataset, checkpoint.instances, checkpoint.step) == (1, "scenes", 12, 3)
    assert checkpoint.word_vectors == "word2vec trained on the captions"


def test_a_log_has_one_line_per_interval_and_one_per_epoch(tmp_path: Path) -> None:
    succeed(*SCENES, "--train-images", "54", workspace=tmp_path)
    outcome = _train(tmp_path, "--no-word-vectors", "--epochs", "2", "--set", "stage1.batch_size=2")

    lines = [line for line in outcome.stderr.splitlines() if "| step " in line]
    found = [match.groups() for match in map(LOG_LINE.fullmatch, lines) if match]
    assert found == [(epoch, "2", step, "54") for epoch, step in (("1", "25"), ("1", "27"), ("2", "52"), ("2", "54"))]
    assert lines[-1].endswith("eta 0s")
    assert len(lines) == 4


def test_options_change_the_configuration(prepared: Path) -> None:
    outcome = _train(
        prepared, "--epochs", "2", "--seed", "5", "--no-word-vectors", "--no-position-shift",
        "--set", "model.word_dim=7", "--set", "stage1.optimizer=sgd",
    )  # fmt: skip

    assert outcome.code == 0
    checkpoint = _checkpoint(prepared, "last")
    config = checkpoint.config
    assert (config.stage1.epochs, config.seed, config.model.position_shift) == (2, 5, False)
    assert (checkpoint.word_dim, checkpoint.word_vectors, config.stage1.optimizer) == (7, "random", "sgd")
    assert checkpoint.step == 6


def test_options_change_how_it_is_computed(prepared: Path) -> None:
    outcome = _train(prepared, "--epochs", "3", "--precision", "fp16", "--keep", "2", "--checkpoint-minutes", "0.00001")

    assert outcome.code == 0
    assert sorted(path.name for path in (prepared / "scenes" / "stage1").glob("epoch-*")) == [
        "epoch-2.pt",
        "epoch-3.pt",
    ]
    checkpoint = _checkpoint(prepared, "last")
    assert checkpoint.scaler["scale"] > 0
    assert all(value.dtype != torch.float16 for value in checkpoint.model.values())
    again = _train(prepared, "--fresh")
    assert "beginning anew; this replaces last.pt, best.pt, curves.png, epoch-2.pt, epoch-3.pt in" in again.stderr


def test_the_plan_is_printed_and_nothing_is_trained(prepared: Path) -> None:
    outcome = _train(prepared, "--show-config", "--epochs", "7", "--set", "image.backbone_weights=imagenet")

    assert (outcome.code, outcome.stderr) == (0, "")
    lines = [line.rstrip() for line in outcome.stdout.splitlines()]
    assert lines[0] == "preset scenes, with all settings as --set takes them:"
    assert {"seed=0", "stage1.epochs=7", "image.backbone_weights=imagenet"} <= set(lines)
    assert {"classes: 12", "steps: 7 epochs of 3, 21 altogether"} <= set(lines)
    assert any(re.fullmatch(r"words +[\d,]+ +0\.000667 +0\.00\d+", line) for line in lines)
    assert re.fullmatch(r"vocabulary: \d+ words with 12-d vectors \(word2vec trained on the captions\)", lines[-5])
    assert lines[-2].startswith("disk: ")
    assert lines[-1].startswith("memory of each device, estimated: ")
    assert "gradients in exchange" not in lines[-1]
    assert "gradients in exchange" in _train(prepared, "--show-config", "--gpus", "2").stdout.splitlines()[-1]
    assert not (prepared / "scenes" / "stage1").exists()


def test_a_frozen_cnn_is_read_from_the_feature_cache(prepared: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "weights.pt", TinyCNN())
    arguments = ("--backbone-weights", str(weights), "--set", "stage1.multipliers.backbone=0",
                 "--set", "stage1.multipliers.backbone_bias=0")  # fmt: skip
    first = _train(prepared, *arguments)
    again = _train(prepared, *arguments, "--fresh")

    assert (first.code, again.code) == (0, 0)
    assert "features of train photos | 12/12" in first.stderr
    assert "features of" not in again.stderr
    assert sorted(path.name.split("-")[0] for path in (prepared / "scenes" / "cache").glob("*.h5")) == ["train", "val"]
    assert _train(prepared, *arguments, "--fresh", "--no-feature-cache").code == 0


def test_a_finished_stage_says_so_and_more_epochs_need_fresh(prepared: Path) -> None:
    _train(prepared)
    finished = _checkpoint(prepared, "last").fingerprint

    outcome = _train(prepared)
    assert outcome.code == 0
    assert "stage 1 is finished; begin anew with --fresh" in outcome.stderr

    error = _train(prepared, "--seed", "9").error
    assert "last.pt: cannot be continued with other settings: seed: 0 -> 9" in error
    assert _checkpoint(prepared, "last").fingerprint == finished

    assert _train(prepared, "--seed", "9", "--fresh").code == 0
    assert _checkpoint(prepared, "last").fingerprint != finished


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--backbone", "nosuch"), "nosuch: there is no such image CNN; choose torchvision's"),
        (("--backbone-weights", "nowhere.pt"), "nowhere.pt: no such file; --backbone-weights takes a file"),
        (("--set", "stage1.multipliers.backbone=0"), "an image CNN without pretrained weights cannot stay frozen"),
        (("--device", "abacus"), "--device abacus: there is no such device; choose auto, cpu, cuda or cuda:N"),
        (("--set", "stage1.epochs"), "--set stage1.epochs: expected KEY=VALUE"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    prepared: Path, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in _train(prepared, *arguments).error
    assert not (prepared / "scenes" / "stage1").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--epochs", "0"),
        ("--epochs", "many"),
        ("--nosuch",),
        ("--workers", "-1"),
        ("--keep", "0"),
        ("--precision", "fp8"),
    ],
)
def test_a_wrong_command_line_exits_with_2(prepared: Path, arguments: tuple[str, ...]) -> None:
    outcome = _train(prepared, *arguments)

    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: dpce train-stage1" in outcome.stderr


def test_a_diverging_loss_ends_the_run_and_names_the_step(prepared: Path) -> None:
    error = _train(prepared, "--set", "stage1.learning_rate=1e30").error

    assert re.match(r"Error: stage 1, step \d+: ", error)
    assert "Run again with a lower learning rate" in error
    assert not list((prepared / "scenes" / "stage1").glob("*.pt"))


@pytest.mark.parametrize(
    ("written", "time", "kept"), [("best.pt", 1, ["last.pt"]), ("last.pt", 2, ["best.pt", "last.pt"])]
)
def test_a_full_disk_keeps_the_checkpoints_of_before(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, written: str, time: int, kept: list[str]
) -> None:
    replace, saved = os.replace, list[str]()

    def full(source: Path, target: Path) -> None:
        saved.append(target.name)
        if saved.count(written) == time:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        error = _train(prepared, "--epochs", "2").error

    folder = prepared / "scenes" / "stage1"
    assert f"{written}: cannot be written (No space left on device)" in error
    assert sorted(path.name for path in folder.glob("*.pt")) == kept
    assert not list(folder.glob(".*"))
    resumed = _train(prepared, "--epochs", "2")
    assert resumed.code == 0
    assert ("last.pt after step 3" in resumed.stderr) == bool(kept)


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_the_same_command_ends_with_the_same_weights(prepared: Path) -> None:
    arguments = ("--epochs", "20", "--set", "stage1.batch_size=3")
    command = [sys.executable, "-m", "tests.command_line", "train-stage1", "--workers", "0", *arguments,
               "--workspace", str(prepared)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = next(line for line in process.stderr if LOG_LINE.fullmatch(line.rstrip()))
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert "step 4/80" in seen
    assert process.returncode == 130
    stopped = re.fullmatch(r"Interrupted: stopped at step (\d+); the same command continues there",
                           rest.splitlines()[-1])  # fmt: skip
    assert stopped
    assert "Traceback" not in rest
    assert 4 <= int(stopped[1]) < 80

    resumed = _train(prepared, *arguments)
    assert resumed.code == 0
    assert f"last.pt after step {stopped[1]}" in resumed.stderr
    interrupted = _checkpoint(prepared, "last")
    assert _train(prepared, *arguments, "--fresh").code == 0
    uninterrupted = _checkpoint(prepared, "last")
    assert interrupted.step == uninterrupted.step == 80
    assert interrupted.fingerprint == uninterrupted.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", "2", "--processes", "2"), "--gpus and --processes exclude each other"),
        (("--gpus", "2", "--device", "cpu"), "--gpus does not go with --device cpu"),
        (("--set", "stage2.margin=0.1"), "--set stage2.margin=0.1: this command does not train stage 2; give"),
    ],
)
def test_options_that_do_not_apply_are_refused(prepared: Path, options: tuple[str, ...], message: str) -> None:
    assert message in dpce("train-stage1", "--no-word-vectors", "--show-config", *options, workspace=prepared).error


def test_training_can_begin_with_a_model_folder(finished_workspace: Path, prepared: Path, tmp_path: Path) -> None:
    succeed("export", tmp_path / "model", workspace=finished_workspace)
    outcome = _train(prepared, "--from", str(tmp_path / "model"), "--epochs", "1")
    assert outcome.code == 0, outcome.stderr
    assert "and 0 new words" in outcome.stderr
    refused = _train(prepared, "--from", str(tmp_path / "model"), "--backbone", "resnet18")
    assert refused.error == ("Error: --from MODEL brings its image CNN; leave out --backbone and --backbone-weights")
    assert "there is no such model folder" in _train(prepared, "--from", str(tmp_path / "none")).error
    shown = _train(prepared, "--from", str(tmp_path / "model"), "--show-config")
    assert "and 0 new words" in shown.stdout
