from __future__ import annotations

import torch
from torch import Tensor

from dpce_cli.core.config import Config
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.training.memory import PeakMemory, training_memory
from dpce_cli.core.training.opening import open_run
from dpce_cli.core.training.optimisation import freeze, parameter_groups
from dpce_cli.core.training.options import RunOptions, StageJob
from dpce_cli.core.training.plan import StagePlan, plan_stage
from dpce_cli.core.training.stage1 import build_model, word_table
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import BATCH, STEPS, TRAIN, Recorder


def plan(workspace: Workspace, *settings: str, feature_cache: bool = True, stage: int = 1) -> StagePlan:
    dataset = workspace.load_dataset()
    config = dataset.config.with_settings(list(settings))
    words = word_table(dataset, config, None)
    return plan_stage(dataset, config, words, stage=stage, feature_cache=feature_cache, classes=TRAIN)


def test_the_plan_is_what_a_run_then_does(workspace: Workspace) -> None:
    planned = plan(workspace)
    dataset = workspace.load_dataset()
    config = dataset.config
    model, words = build_model(dataset, config, None, stage=1)
    options = RunOptions(device=torch.device("cpu"), workers=0, feature_cache=True, fresh=False)
    job = StageJob(
        workspace=workspace, dataset=dataset, config=config, number=1, words=words, options=options, reporter=Recorder()
    )
    groups = parameter_groups(model, config.stage1.multipliers)

    assert [(group.name, group.parameters) for group in planned.groups] == [(g.name, g.size) for g in groups]
    with open_run(job, model) as run:
        assert (planned.steps_per_epoch, planned.epochs) == (run.steps_per_epoch, config.stage1.epochs) == (STEPS, 3)
    assert (planned.vocabulary, planned.word_dim, planned.word_vectors) == (
        len(words.vocabulary), words.word_dim, words.source,
    )  # fmt: skip
    assert planned.parameters == {
        name: sum(value.numel() for value in part.parameters())
        for name, part in (
            ("image_encoder", model.image_encoder),
            ("text_encoder", model.text_encoder),
            ("shared_classifier", model.shared_classifier),
        )
    }
    learning = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert planned.memory["weights"] == sum(value.nbytes for value in model.state_dict().values())
    assert planned.memory["optimizer"] == 8 * learning


def test_planning_needs_no_weights_and_leaves_nothing(workspace: Workspace) -> None:
    before = sorted(workspace.root.rglob("*"))
    planned = plan(workspace, "image.backbone=resnet50-v1", "image.backbone_weights=imagenet")
    assert planned.parameters["image_encoder"] > 23_000_000
    assert sorted(workspace.root.rglob("*")) == before


def test_rates_are_the_groups_own_at_the_first_step_and_at_their_highest(workspace: Workspace) -> None:
    planned = plan(workspace, "stage1.warmup_epochs=1", "stage1.learning_rate=0.3", "stage1.multipliers.words=0.5")
    rates = {group.name: (group.first_rate, group.highest_rate) for group in planned.groups}
    assert rates["backbone"] == (0, 0)
    first, highest = rates["weight"]
    assert first == 0.3 / STEPS
    assert first < highest < 0.3
    assert rates["words"] == (first / 2, highest / 2)


def peak_on_cpu(model: DualEncoder, config: Config, images: Tensor) -> int:
    """The most bytes that a step's tensors hold at a time."""
    texts = BATCH * config.stage1.captions_per_image
    with PeakMemory() as peak:
        image = model.image_encoder(images)
        text = model.text_encoder(torch.ones(texts, config.text.max_words, dtype=torch.long))
        ids = torch.zeros(BATCH + texts, dtype=torch.long)
        losses = model.instance_losses(image, text, ids[:BATCH], ids[BATCH:], 0.0)
        (losses.image_loss + losses.text_loss).backward()
    size: int = peak.bytes
    return size


def test_a_step_takes_what_it_takes_when_it_is_run(workspace: Workspace) -> None:
    dataset = workspace.load_dataset()
    config = dataset.config.with_settings(["stage1.multipliers.backbone=1"])
    model, _ = build_model(dataset, config, None, stage=1)
    freeze(parameter_groups(model.train(), config.stage1.multipliers))
    side = config.image.crop
    actual = peak_on_cpu(model, config, torch.zeros(BATCH, 3, side, side, dtype=torch.uint8))
    planned = plan(workspace, "stage1.multipliers.backbone=1").memory["a step"]
    assert abs(planned - actual) < 0.05 * actual
    assert plan(workspace).memory["a step"] < planned


def test_of_several_processes_each_holds_its_share(workspace: Workspace) -> None:
    config = workspace.load_dataset().config.with_settings(["stage1.batch_size=64"])

    def memory(processes: int, *settings: str) -> dict[str, int]:
        return training_memory(
            config.with_settings(list(settings)), stage=1, vocabulary=30, word_dim=12, classes=100_000,
            feature_cache=True, processes=processes,
        )  # fmt: skip

    one, four = memory(1), memory(4)
    classifier = 100_000 * config.model.embedding_dim * 4
    assert one["weights"] - four["weights"] == classifier * 3 // 4
    assert one["optimizer"] - four["optimizer"] == 2 * classifier * 3 // 4
    assert four["a step"] < one["a step"]
    sampled = memory(1, "model.classifier_sample_rate=0.1")
    assert sampled["weights"] - one["weights"] == classifier // 10
    assert sampled["optimizer"] == one["optimizer"]
    assert sampled["a step"] < one["a step"]


def test_a_step_in_parts_needs_the_memory_of_one_and_of_the_gradients(workspace: Workspace) -> None:
    small, parts, whole = (
        plan(workspace, *settings).memory
        for settings in (
            ["stage1.batch_size=32"],
            ["stage1.batch_size=64", "stage1.accumulation_steps=2"],
            ["stage1.batch_size=64"],
        )
    )
    assert parts["weights"] == small["weights"]
    assert small["a step"] < parts["a step"] < whole["a step"]


def test_memory_follows_batch_and_optimizer(workspace: Workspace) -> None:
    small, large = (plan(workspace, f"stage1.batch_size={size}").memory for size in (4, 8))
    assert small["weights"] == large["weights"]
    assert small["a step"] < large["a step"]
    sgd = plan(workspace, "stage1.optimizer=sgd").memory
    assert 2 * sgd["optimizer"] == small["optimizer"]
