from __future__ import annotations

import pytest

from dpce_cli.core.config import Config, StageConfig, differences
from dpce_cli.core.errors import ConfigError
from dpce_cli.core.presets import PRESETS, build_preset
from dpce_cli.core.training.optimisation import learning_rate


@pytest.fixture
def paper() -> Config:
    return build_preset("paper-flickr30k")


def effective_rates(stage: StageConfig) -> dict[str, float]:
    return {name: stage.learning_rate * multiplier for name, multiplier in vars(stage.multipliers).items()}


def test_the_papers_learning_rates_in_stage_1(paper: Config) -> None:
    assert effective_rates(paper.stage1) == pytest.approx(
        {
            "backbone": 0.0,
            "backbone_bias": 0.0,
            "weight": 0.01,
            "bias": 0.2,
            "bn_scale": 0.02,
            "bn_shift": 0.01,
            "words": 1e-4,
            "classifier": 0.001,
            "classifier_bias": 0.002,
        }
    )


def test_the_papers_stage_2_differs_from_stage_1_in_the_image_cnns_rates_alone(paper: Config) -> None:
    expected = effective_rates(paper.stage1) | {"backbone": 1e-4, "backbone_bias": 0.002}
    assert effective_rates(paper.stage2) == pytest.approx(expected)


def test_the_papers_optimizer(paper: Config) -> None:
    for stage in (paper.stage1, paper.stage2):
        assert stage.optimizer == "sgd"
        assert stage.learning_rate == 0.1
        assert stage.weight_decay == 1e-4
        assert stage.batch_size == 32
        assert stage.captions_per_image == 1
        assert stage.label_smoothing == 0


def test_the_papers_epochs(paper: Config) -> None:
    assert (paper.stage1.epochs, paper.stage2.epochs) == (240, 60)
    steps = 930
    assert {learning_rate(paper.stage1, step, steps) for step in range(0, 240 * steps, steps)} == {0.1}
    rates = [learning_rate(paper.stage2, epoch * steps, steps) for epoch in range(60)]
    assert rates == pytest.approx([0.1] * 40 + [0.01] * 20)


def test_the_papers_losses(paper: Config) -> None:
    first, second = paper.stage1, paper.stage2
    assert (first.image_weight, first.text_weight) == (1, 1)
    assert (second.ranking_weight, second.image_weight, second.text_weight) == (2, 1, 0.1)
    assert second.margin == 1
    assert (second.negatives, second.negative_pool) == ("hardest_in_pool", 256)


def test_the_papers_network(paper: Config) -> None:
    assert paper.image.backbone == "resnet50"
    assert paper.image.backbone_weights == "imagenet"
    assert paper.model.embedding_dim == 2048
    assert paper.model.text_blocks == (3, 4, 6, 1)
    assert paper.model.text_width == 1
    assert paper.model.word_dim == 300
    assert paper.model.dropout == 0.75
    assert paper.model.classifier_bias
    assert paper.model.classifier_scale == 0
    assert paper.model.position_shift


def test_the_papers_input(paper: Config) -> None:
    assert paper.text.max_words == 32
    assert not paper.text.lowercase
    assert paper.text.min_count == 1
    assert (paper.image.resize, paper.image.crop) == (256, 224)
    assert paper.image.min_crop_scale == 0.8
    assert paper.image.mirror


def changes(name: str, base: str = "paper-flickr30k") -> dict[str, tuple[str, str]]:
    """What a preset has another value for than `base`."""
    lines = differences(build_preset(base), build_preset(name))
    return {
        key: (before, after)
        for key, _, values in (line.partition(": ") for line in lines)
        for before, _, after in (values.partition(" -> "),)
        if key != "preset"
    }


def test_what_the_paper_does_otherwise_on_mscoco() -> None:
    assert changes("paper-coco") == {
        "model.dropout": ("0.75", "0.5"),
        "model.classifier_bias": ("True", "False"),
        "stage1.epochs": ("240", "90"),
        "stage2.epochs": ("60", "21"),
        "stage2.milestones": ("[40]", "[15, 20]"),
    }
    stage = build_preset("paper-coco").stage2
    rates = [learning_rate(stage, epoch * 3540, 3540) for epoch in range(21)]
    assert rates == pytest.approx([0.1] * 15 + [0.01] * 5 + [0.001])


def test_what_the_paper_does_otherwise_on_cuhk_pedes() -> None:
    assert changes("paper-cuhk-pedes") == {
        "text.max_words": ("32", "56"),
        "image.squash": ("False", "True"),
        "model.dropout": ("0.75", "0.8"),
        "stage1.epochs": ("240", "180"),
        "stage2.epochs": ("60", "61"),
        "stage2.text_weight": ("0.1", "0.5"),
        "stage2.negatives": ("hardest_in_pool", "random"),
    }


def test_the_papers_variants_differ_in_the_image_cnn_and_what_goes_with_it() -> None:
    assert changes("paper-flickr30k-vgg19") == {
        "image.backbone": ("resnet50", "vgg19"),
        "model.classifier_bias": ("True", "False"),
    }
    assert changes("paper-flickr30k-resnet152") == {
        "image.backbone": ("resnet50", "resnet152"),
        "model.text_blocks": ("[3, 4, 6, 1]", "[3, 8, 36, 1]"),
    }
    assert changes("paper-cuhk-pedes-vgg16", "paper-cuhk-pedes") == {
        "image.backbone": ("resnet50", "vgg16"),
        "stage1.epochs": ("180", "150"),
        "stage2.epochs": ("61", "60"),
    }


def test_the_preset_for_more_pixels_differs_in_photos_and_the_text_cnn_alone() -> None:
    assert changes("flickr8k-384", "flickr8k") == {
        "image.resize": ("224", "384"),
        "image.crop": ("224", "384"),
        "model.text_width": ("0.25", "0.5"),
    }


def test_fine_tuning_trains_the_last_part_of_the_cnn_in_stage_2_alone() -> None:
    config = build_preset("flickr8k-fine-tuned")
    assert config.image.frozen_until == "layer3"
    assert config.stage1 == build_preset("flickr8k").stage1
    assert {key.split(".")[0] for key in changes("flickr8k-fine-tuned", "flickr8k-384")} == {"image", "stage2"}
    assert effective_rates(config.stage2)["backbone"] == pytest.approx(1.5e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_knows_its_name(name: str) -> None:
    assert build_preset(name).preset == name


@pytest.mark.parametrize("name", PRESETS)
def test_an_untrained_image_cnn_is_trained(name: str) -> None:
    config = build_preset(name)
    assert config.image.backbone_weights == "imagenet" or config.stage1.multipliers.backbone > 0


@pytest.mark.parametrize("name", PRESETS)
def test_stage_2_adds_the_ranking_loss(name: str) -> None:
    assert build_preset(name).stage2.ranking_weight > 0


@pytest.mark.parametrize("name", ["flickr8k", "flickr8k-384", "flickr8k-fine-tuned", "scenes"])
def test_small_data_presets_fold_case_because_their_word_vectors_do(name: str) -> None:
    assert build_preset(name).text.lowercase


def test_scenes_are_never_mirrored_because_captions_tell_left_from_right() -> None:
    assert not build_preset("scenes").image.mirror


def test_an_unknown_preset_lists_the_known_ones() -> None:
    known = "scenes, flickr8k, flickr8k-384, flickr8k-fine-tuned, "
    with pytest.raises(ConfigError, match=f"no preset 'coco'; choose one of {known}"):
        build_preset("coco")
