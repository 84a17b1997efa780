from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dpce_cli.core.config import Config, differences
from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models.text_encoder import _STAGES
from dpce_cli.core.presets import PRESETS, build_preset


def tree() -> dict[str, Any]:
    return build_preset("flickr8k").to_dict()


def leaves(branch: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        key
        for name, value in branch.items()
        for key in (leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name])
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_survives_json(preset: str) -> None:
    config = build_preset(preset)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict())), "file.json") == config


def test_every_value_is_checked_on_the_way_in() -> None:
    for key in leaves(tree()):
        bad_values: list[Any] = [None, {}, 7 if isinstance(value_of(key), str) else "wrong"]
        for bad in bad_values:
            broken = tree()
            *sections, name = key.split(".")
            branch = broken
            for section in sections:
                branch = branch[section]
            branch[name] = bad
            with pytest.raises(ConfigError, match=rf"^file\.json: {key} is .*; expected "):
                Config.from_dict(broken, "file.json")


def value_of(key: str) -> Any:
    branch: Any = tree()
    for name in key.split("."):
        branch = branch[name]
    return branch


def test_an_unknown_key_is_named() -> None:
    broken = tree()
    broken["stage1"]["momentum"] = 0.9
    with pytest.raises(ConfigError, match=r"file\.json: stage1 lacks or does not know momentum;.*prepare-vocab"):
        Config.from_dict(broken, "file.json")


def test_what_was_written_before_a_setting_existed_is_read_as_if_it_had_been_off() -> None:
    old = tree()
    for stage in ("stage1", "stage2"):
        del old[stage]["accumulation_steps"], old[stage]["clip_norm"]
    del old["image"]["pooling"]
    assert Config.from_dict(old, "file.json") == build_preset("flickr8k")


@pytest.mark.parametrize(
    "settings",
    [
        ["stage1.accumulation_steps=0"],
        ["stage2.accumulation_steps=3"],
        ["stage1.batch_size=8", "stage1.accumulation_steps=8"],
        ["stage1.accumulation_steps=2", "model.classifier_sample_rate=0.5"],
    ],
)
def test_parts_of_a_step_that_cannot_be_are_refused(settings: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"the configuration needs stage\d\.accumulation_steps "):
        build_preset("flickr8k").with_settings(settings)


def test_a_missing_key_is_named() -> None:
    broken = tree()
    del broken["seed"], broken["text"]
    with pytest.raises(ConfigError, match="the configuration lacks or does not know seed, text"):
        Config.from_dict(broken, "file.json")


@pytest.mark.parametrize("value", [[], None, "text", 3])
def test_a_table_must_be_a_table(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected a table"):
        Config.from_dict(value, "file.json")
    with pytest.raises(ConfigError, match=r"stage1 is .*; expected a table"):
        Config.from_dict(tree() | {"stage1": value}, "file.json")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("seed=true", "seed is True; expected a whole number"),
        ("seed=1.0", "seed is 1.0; expected a whole number"),
        ("seed=-1", "seed is -1; expected a number of at least 0"),
        ("model.dropout=true", "model.dropout is True; expected a number"),
        ("model.dropout=NaN", "expected a number of at least 0"),
        ("stage1.learning_rate=1e999", "expected a number of at least 0"),
        ("stage2.margin=-0.1", "expected a number of at least 0"),
        ("image.mirror=1", "image.mirror is 1; expected true or false"),
        ("image.mirror=yes", "image.mirror is 'yes'; expected true or false"),
        ("seed=" + "9" * 5000, "seed is .9999.*...; expected a whole number"),
        ("model.text_blocks=" + "[" * 5000, "model.text_blocks is .*; expected a list such as"),
        ("stage1.learning_rate=1" + "0" * 400, "stage1.learning_rate is 1000.*; expected a smaller number"),
        ("stage1.optimizer=adam", "stage1.optimizer is 'adam'; expected one of sgd, adamw"),
        ("stage2.negatives=[]", r"expected one of hardest_in_batch, hardest_in_pool"),
        ("model.text_blocks=3", "expected a list such as"),
        ("model.text_blocks=[1,true]", "model.text_blocks is True; expected a whole number"),
        ('model.text_blocks=[1,"2"]', "model.text_blocks is '2'; expected a whole number"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(setting: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^--set: .*{expected}"):
        build_preset("flickr8k").with_settings([setting])


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("seed=7", lambda config: config.seed == 7),
        ("model.text_blocks=[3,4,6,1]", lambda config: config.model.text_blocks == (3, 4, 6, 1)),
        ("stage2.milestones=[40]", lambda config: config.stage2.milestones == (40,)),
        ("model.dropout=0.5", lambda config: config.model.dropout == 0.5),
        ("model.dropout=0", lambda config: config.model.dropout == 0.0 and type(config.model.dropout) is float),
        ("stage1.learning_rate=1e-3", lambda config: config.stage1.learning_rate == 0.001),
        ("stage1.multipliers.words=0", lambda config: config.stage1.multipliers.words == 0),
        ("stage1.schedule=steps", lambda config: config.stage1.schedule == "steps"),
        ('stage1.schedule="steps"', lambda config: config.stage1.schedule == "steps"),
        ("image.backbone_weights=2024", lambda config: config.image.backbone_weights == "2024"),
        ("image.backbone=vgg19", lambda config: config.image.backbone == "vgg19"),
        ("image.backbone_weights=a=b.pth", lambda config: config.image.backbone_weights == "a=b.pth"),
        ("image.mirror=false", lambda config: config.image.mirror is False),
        (" seed = 7 ", lambda config: config.seed == 7),
    ],
)
def test_settings_change_values(setting: str, read: Callable[[Config], bool]) -> None:
    before = build_preset("flickr8k")
    after = before.with_settings([setting])
    assert read(after)
    assert not read(before)
    assert len(differences(before, after)) == 1


def test_settings_add_up_and_the_last_one_counts() -> None:
    before = build_preset("flickr8k")
    after = before.with_settings(["seed=3", "stage1.epochs=5", "seed=4"])
    assert after == replace(before, seed=4, stage1=replace(before.stage1, epochs=5))
    assert before.with_settings([]) == before


@pytest.mark.parametrize(
    "setting",
    [
        "seed",
        "=3",
        "preset=scenes",
        "sed=3",
        "stage1=3",
        "stage1.multipliers={}",
        "stage1.epoch=3",
        "seed.x=3",
        "stage3.epochs=1",
        "",
    ],
)
def test_a_setting_of_an_unknown_key_lists_the_known_ones(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"expected KEY=VALUE with one of seed, text.max_words, .*stage2"):
        build_preset("flickr8k").with_settings([setting])


@pytest.mark.parametrize(
    "settings",
    [
        "text.max_words=0",
        "image.crop=31",
        "image.pooling=[2]",
        "image.pooling=[0,2]",
        "image.crop=225",
        "image.resize=223",
        "image.min_crop_scale=0",
        "image.min_crop_scale=1.01",
        "model.embedding_dim=0",
        "model.word_dim=0",
        "model.text_blocks=[]",
        "model.text_blocks=[1,1,1,1,1]",
        "model.text_blocks=[1,0]",
        "model.dropout=1",
        "stage1.epochs=0",
        "stage1.batch_size=1",
        "stage2.batch_size=1",
        "stage2.captions_per_image=0",
        "stage2.negative_pool=0",
        "stage1.label_smoothing=1",
    ],
)
def test_a_value_out_of_range_is_refused(settings: str) -> None:
    key = settings.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"the configuration needs .*{key}.*--set KEY=VALUE"):
        build_preset("flickr8k").with_settings([settings])


@pytest.mark.parametrize(
    "setting",
    [
        "seed=9223372036854775807",
        "text.max_words=1",
        "image.crop=32",
        "image.crop=224",
        "image.min_crop_scale=1",
        "model.text_blocks=[1]",
        "model.text_blocks=[3,8,36,1]",
        "model.dropout=0.99",
        "model.dropout=0",
        "stage1.batch_size=2",
        "stage1.epochs=1",
        "stage1.label_smoothing=0.99",
        "stage2.negative_pool=1",
    ],
)
def test_values_at_the_ends_of_their_ranges_are_taken(setting: str) -> None:
    assert build_preset("flickr8k").with_settings([setting])


@pytest.mark.parametrize("ranking_weight", [0, 2])
def test_pool_negatives_need_one_caption_a_photo_in_stage_2(ranking_weight: int) -> None:
    pool = ["stage2.negatives=hardest_in_pool", f"stage2.ranking_weight={ranking_weight}"]
    with pytest.raises(ConfigError, match=r"stage2.captions_per_image = 1 with hardest_in_pool"):
        build_preset("flickr8k").with_settings(pool)
    assert build_preset("flickr8k").with_settings([*pool, "stage2.captions_per_image=1"])


def test_differences_name_old_and_new_values() -> None:
    old = build_preset("flickr8k")
    new = old.with_settings(["seed=9", "model.text_blocks=[1]", "stage2.multipliers.words=0.5"])
    assert differences(old, new) == [
        "seed: 0 -> 9",
        "model.text_blocks: [1, 1, 1] -> [1]",
        "stage2.multipliers.words: 1.0 -> 0.5",
    ]
    assert differences(old, old) == []


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_preset("flickr8k").seed = 3  # type: ignore[misc]


def test_the_configurable_stages_are_those_that_can_be_built() -> None:
    with pytest.raises(ConfigError, match=f"1 to {len(_STAGES)} numbers"):
        build_preset("flickr8k").with_settings([f"model.text_blocks={[1] * (len(_STAGES) + 1)}"])


def test_the_settings_of_a_configuration_make_another_into_it() -> None:
    config, other = build_preset("paper-flickr30k"), build_preset("scenes")
    assert replace(other.with_settings(config.settings()), preset=config.preset) == config
    assert "image.backbone_weights=imagenet" in config.settings()
    assert "model.text_blocks=[3, 4, 6, 1]" in config.settings()


@pytest.mark.parametrize(
    "setting",
    [f"seed={2**63}", f"stage1.epochs={10**40}", f"image.cached_crops={2**63}", "model.text_blocks=[1000000,1,1]"],
)
def test_numbers_that_no_training_has_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a number below 2\^63|numbers from 1 to 100"):
        build_preset("scenes").with_settings([setting])
