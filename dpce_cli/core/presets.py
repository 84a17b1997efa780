"""Named configurations: the paper's numbers, and recipes that measured better on small data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dpce_cli.core.config import (
    Config,
    ImageConfig,
    LearningRates,
    ModelConfig,
    RankingStageConfig,
    StageConfig,
    TextConfig,
)
from dpce_cli.core.errors import ConfigError


def paper_flickr30k() -> Config:
    """Zheng et al. 2020 on Flickr30k with ResNet-50 (section 5.1 and the released code, "RC")."""
    stage1_rates = LearningRates(
        backbone=0.0,  # Stage I freezes the image CNN
        backbone_bias=0.0,
        weight=0.1,  # effective 0.01
        bias=2.0,  # RC
        bn_scale=0.2,  # RC
        bn_shift=0.1,  # RC
        words=0.001,  # effective 1e-4
        classifier=0.01,  # effective 0.001, the paper's "0.001"
        classifier_bias=0.02,  # RC
    )
    stage1 = StageConfig(
        epochs=240,  # RC
        batch_size=32,
        captions_per_image=1,
        optimizer="sgd",  # Nesterov, momentum 0.9
        learning_rate=0.1,  # RC's base; see the multipliers
        multipliers=stage1_rates,
        weight_decay=1e-4,  # RC
        schedule="steps",
        milestones=(),
        warmup_epochs=0.0,
        image_weight=1.0,
        text_weight=1.0,
        label_smoothing=0.0,
    )
    return Config(
        preset="paper-flickr30k",
        seed=0,
        text=TextConfig(
            max_words=32,  # section 3.2
            lowercase=False,  # the word2vec dictionary is case-sensitive
            min_count=1,
        ),
        image=ImageConfig(
            backbone="resnet50",
            backbone_weights="imagenet",
            resize=256,
            crop=224,
            min_crop_scale=0.8,  # RC
            mirror=True,
            cached_crops=4,  # ours: fresh crops need --no-feature-cache
        ),
        model=ModelConfig(
            embedding_dim=2048,
            text_blocks=(3, 4, 6, 1),  # RC's "ResNet-50" text net
            text_width=1.0,
            word_dim=300,  # GoogleNews word2vec
            position_shift=True,  # section 3.2
            relu=True,  # section 4.1
            dropout=0.75,  # RC
            classifier_bias=True,  # RC, on Flickr30k with ResNet-50
            classifier_scale=0.0,
        ),
        stage1=stage1,
        stage2=with_ranking(
            stage1,
            epochs=60,  # 40 at 0.1, 20 at 0.01
            milestones=(40,),
            multipliers=replace(stage1_rates, backbone=0.001, backbone_bias=0.02),  # effective 1e-4 and 0.002
            ranking_weight=2.0,  # rank : image : text is 2 : 1 : 0.1
            image_weight=1.0,
            text_weight=0.1,
            margin=1.0,
            negatives="hardest_in_pool",
            negative_pool=256,
        ),
    )


def with_ranking(stage1: StageConfig, **values: Any) -> RankingStageConfig:
    """Stage II as Stage I with other `values`."""
    return RankingStageConfig(**{**vars(stage1), **values})


def flickr8k() -> Config:
    """A recipe for data sets of some thousand photos that trains on a CPU.

    Departs from Zheng et al. 2020: a classifier of scaled cosines, without a ReLU before it, learns captions in a
    fraction of the epochs (the README has the measurement); AdamW, a cosine schedule and all five captions of a photo
    in a step; a small text CNN and embedding; Stage II takes the hardest negatives of the batch with a margin of 0.2
    (VSE++). The image CNN stays frozen in both stages, so that its features are computed once.
    """
    paper = paper_flickr30k()
    stage1 = replace(
        paper.stage1,
        epochs=24,
        batch_size=32,
        captions_per_image=5,
        optimizer="adamw",
        learning_rate=2e-3,
        multipliers=LearningRates(
            backbone=0.0,
            backbone_bias=0.0,
            weight=1.0,
            bias=1.0,
            bn_scale=1.0,
            bn_shift=1.0,
            words=1.0,
            classifier=1.0,
            classifier_bias=1.0,
        ),
        schedule="cosine",
        warmup_epochs=1.0,
    )
    return replace(
        paper,
        preset="flickr8k",
        text=replace(paper.text, lowercase=True),  # GloVe and most other vectors are lower-case
        image=replace(paper.image, resize=224, cached_crops=0),
        model=replace(
            paper.model,
            embedding_dim=512,
            text_blocks=(1, 1, 1),
            text_width=0.25,
            relu=False,
            dropout=0.1,
            classifier_bias=False,
            classifier_scale=16.0,
        ),
        stage1=stage1,
        stage2=with_ranking(
            stage1,
            epochs=4,
            batch_size=128,
            learning_rate=2e-4,
            ranking_weight=4.0,
            margin=0.2,
            negatives="hardest_in_batch",
            negative_pool=256,  # not used with hardest_in_batch
        ),
    )


def scenes() -> Config:
    """The built-in scenes: small pictures, so the image CNN trains from scratch, in both stages, within minutes."""
    base = flickr8k()
    learning = replace(base.stage1.multipliers, backbone=1.0, backbone_bias=1.0)
    return replace(
        base,
        preset="scenes",
        image=ImageConfig(
            backbone="resnet18",
            backbone_weights="none",
            resize=48,
            crop=48,
            min_crop_scale=0.9,
            mirror=False,  # captions tell left from right
            cached_crops=0,
        ),
        model=replace(base.model, word_dim=100),
        stage1=replace(base.stage1, multipliers=learning, epochs=8, captions_per_image=3),
        stage2=replace(
            base.stage2,
            multipliers=learning,
            epochs=22,
            batch_size=32,
            captions_per_image=3,
            learning_rate=1e-3,
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "flickr8k": flickr8k,
    "paper-flickr30k": paper_flickr30k,
    "scenes": scenes,
}


def build_preset(name: str) -> Config:
    """The preset `name`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset '{name}'; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
