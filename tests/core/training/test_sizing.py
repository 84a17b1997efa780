from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpce_cli.core.config import Config
from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.presets import build_preset
from dpce_cli.core.training.opening import open_run
from dpce_cli.core.training.optimisation import freeze, parameter_groups
from dpce_cli.core.training.options import RunOptions, StageJob
from dpce_cli.core.training.peak_memory import PeakMemory
from dpce_cli.core.training.sizing import StageSize, size_for_dataset, size_stage, training_memory
from dpce_cli.core.training.stage1 import build_model, word_table
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import BATCH, STEPS, TRAIN, Recorder, train


def size_of_tiny(workspace: Workspace, *settings: str, feature_cache: bool = True, stage: int = 1) -> StageSize:
    dataset = workspace.load_dataset()
    config = dataset.config.with_settings(list(settings))
    words = word_table(dataset, config, None)
    return size_for_dataset(
        dataset, config, words, stage=stage, classes=TRAIN, processes=1, feature_cache=feature_cache
    )


def test_the_estimated_size_is_that_of_the_run(workspace: Workspace) -> None:
    planned = size_of_tiny(workspace)
    dataset = workspace.load_dataset()
    config = dataset.config
    model, words = build_model(dataset, config, None, stage=1)
    options = RunOptions(device=torch.device("cpu"), workers=0, feature_cache=True, fresh=False)
    job = StageJob(
        workspace=workspace, dataset=dataset, config=config, number=1, words=words, options=options, reporter=Recorder()
    )
    groups = parameter_groups(model, config.stage1.multipliers)

    assert [(group.name, group.size) for group in planned.groups] == [(g.name, g.size) for g in groups]
    with open_run(job, model) as run:
        assert (planned.steps_per_epoch, planned.epochs) == (run.steps_per_epoch, config.stage1.epochs) == (STEPS, 3)
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
    planned = size_of_tiny(workspace, "image.backbone=resnet50-v1", "image.backbone_weights=imagenet")
    assert planned.parameters["image_encoder"] > 23_000_000
    assert sorted(workspace.root.rglob("*")) == before


def peak_on_cpu(model: DualEncoder, config: Config, images: Tensor) -> int:
    """The most bytes that the tensors of a step hold at a time."""
    texts = BATCH * config.stage1.captions_per_image
    with PeakMemory() as peak:
        image = model.image_encoder(images)
        text = model.text_encoder(torch.ones(texts, config.text.max_words, dtype=torch.long))
        ids = torch.zeros(BATCH + texts, dtype=torch.long)
        losses = model.instance_losses(image, text, ids[:BATCH], ids[BATCH:], 0.0)
        (losses.image_loss + losses.text_loss).backward()
    size: int = peak.bytes
    return size


def test_the_estimated_memory_of_a_step_is_that_of_the_run(workspace: Workspace) -> None:
    dataset = workspace.load_dataset()
    config = dataset.config.with_settings(["stage1.multipliers.backbone=1"])
    model, _ = build_model(dataset, config, None, stage=1)
    freeze(parameter_groups(model.train(), config.stage1.multipliers))
    side = config.image.crop
    actual = peak_on_cpu(model, config, torch.zeros(BATCH, 3, side, side, dtype=torch.uint8))
    planned = size_of_tiny(workspace, "stage1.multipliers.backbone=1").memory["activations and gradients"]
    assert abs(planned - actual) < 0.05 * actual
    assert size_of_tiny(workspace).memory["activations and gradients"] < planned


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
    assert four["activations and gradients"] < one["activations and gradients"]
    sampled = memory(1, "model.classifier_sample_rate=0.1")
    assert sampled["weights"] - one["weights"] == classifier // 10
    assert sampled["optimizer"] == one["optimizer"]
    assert sampled["activations and gradients"] < one["activations and gradients"]


def test_a_step_in_parts_needs_the_memory_of_one_and_of_the_gradients(workspace: Workspace) -> None:
    small, parts, whole = (
        size_of_tiny(workspace, *settings).memory
        for settings in (
            ["stage1.batch_size=32"],
            ["stage1.batch_size=64", "stage1.accumulation_steps=2"],
            ["stage1.batch_size=64"],
        )
    )
    assert parts["weights"] == small["weights"]
    assert small["activations and gradients"] < parts["activations and gradients"] < whole["activations and gradients"]


def test_memory_follows_batch_and_optimizer(workspace: Workspace) -> None:
    small, large = (size_of_tiny(workspace, f"stage1.batch_size={size}").memory for size in (4, 8))
    assert small["weights"] == large["weights"]
    assert small["activations and gradients"] < large["activations and gradients"]
    sgd = size_of_tiny(workspace, "stage1.optimizer=sgd").memory
    assert 2 * sgd["optimizer"] == small["optimizer"]


def size_of(*settings: str, feature_cache: bool = True, processes: int = 1) -> StageSize:
    config = build_preset("paper-coco").with_settings(
        ["image.backbone=resnet18", "model.embedding_dim=64", "stage1.batch_size=4", *settings]
    )
    return size_stage(
        config, stage=1, images=1000, classes=1000, captions_per_image=5, vocabulary=300, word_dim=300,
        processes=processes, feature_cache=feature_cache,
    )  # fmt: skip


def test_a_frozen_cnn_has_no_state_in_the_checkpoint_and_features_in_the_cache() -> None:
    cached, photos = size_of(), size_of(feature_cache=False)
    learning = size_of("stage1.multipliers.backbone=1")
    assert cached.disk["last.pt"] == photos.disk["last.pt"] < learning.disk["last.pt"]
    assert cached.disk["best.pt"] == learning.disk["best.pt"] < photos.disk["last.pt"]
    assert "cached features" not in photos.disk | learning.disk
    assert cached.disk["cached features"] > 0


def test_a_rate_for_biases_that_a_cnn_does_not_have_leaves_it_frozen() -> None:
    assert size_of("stage1.multipliers.backbone_bias=1").disk == size_of().disk
    assert "cached features" not in size_of("stage1.multipliers.backbone_bias=1", "image.backbone=vgg16").disk


def test_the_disk_is_that_of_the_maps_of_a_lower_part(workspace: Workspace) -> None:
    settings = ["image.frozen_until=bn1", "stage1.multipliers.backbone=1", "stage1.epochs=1"]
    planned = size_of_tiny(workspace, *settings)
    assert {group.name: group.multiplier for group in planned.groups if "backbone" in group.name} == {
        "backbone": 1, "lower backbone": 0,
    }  # fmt: skip
    train(workspace, 1, workspace.load_dataset().config.with_settings(settings))
    (written,) = (workspace.folder / "cache").glob("train-*.h5")
    described = written.stat().st_size - planned.disk["cached features"]
    assert 0 < described < 20_000


def test_a_frozen_cnn_that_is_cut_has_its_maps_and_its_features_in_the_cache(workspace: Workspace) -> None:
    settings = ["image.frozen_until=bn1", "stage1.multipliers.backbone=0", "stage1.epochs=1"]
    planned = size_of_tiny(workspace, *settings)
    train(workspace, 1, workspace.load_dataset().config.with_settings(settings))
    maps, pooled = (workspace.folder / "cache").glob("train-*.h5")
    described = maps.stat().st_size + pooled.stat().st_size - planned.disk["cached features"]
    assert 0 < described < 40_000


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 1), ("adamw", 2)])
def test_the_first_process_gathers_the_classes_with_their_state(optimizer: str, states: int) -> None:
    assert size_of(f"stage1.optimizer={optimizer}", processes=2).memory_to_save == 1000 * 64 * 4 * (1 + states)
    assert size_of(f"stage1.optimizer={optimizer}").memory_to_save == 0


@pytest.mark.parametrize(
    "setting",
    [
        "model.embedding_dim=1000000000000000000",
        f"stage1.batch_size={10**18}",
        f"text.max_words={10**18}",
    ],
)
def test_absurd_numbers_end_in_one_line(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"^stage 1 cannot be this large \([^\n]*\); choose fewer photos[^\n]*$"):
        size_of(setting)


def test_one_photo_per_process_is_sized() -> None:
    assert size_of(processes=4).memory["activations and gradients"] > 0


def test_swapped_captions_are_counted(workspace: Workspace) -> None:
    plain = size_of_tiny(workspace, stage=2)
    swapping = size_of_tiny(workspace, "stage2.detail_weight=1", stage=2)
    key = "activations and gradients"
    assert plain.memory[key] < swapping.memory[key] < 2 * plain.memory[key]
    assert plain.memory["weights"] == swapping.memory["weights"]
