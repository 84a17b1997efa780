"""Named configurations: the settings of the paper, and settings that are better on small data sets."""

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
    """Zheng et al. 2020 on Flickr30k with ResNet-50 (section 5.1 and the released code, "RC").

    One departure: in Stage II, RC has a multiplier of 1e-4 for the first filter of the image CNN; here, it is that of
    the other filters.
    """
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
        batch_size=32,  # RC
        captions_per_image=1,  # RC: one of the five at random
        optimizer="sgd",  # RC: Nesterov, momentum 0.9
        learning_rate=0.1,  # RC's base; see the multipliers
        multipliers=stage1_rates,
        weight_decay=1e-4,  # RC
        schedule="steps",  # RC
        milestones=(),  # RC: 0.1 in all epochs
        warmup_epochs=0.0,  # RC has none
        image_weight=1.0,  # image : text is 1 : 1 in Stage I
        text_weight=1.0,
        label_smoothing=0.0,  # none in RC
    )
    return Config(
        preset="paper-flickr30k",
        seed=0,  # ours
        text=TextConfig(
            max_words=32,  # section 3.2
            lowercase=False,  # the word2vec dictionary is case-sensitive
            min_count=1,  # RC: every word that has a vector
        ),
        image=ImageConfig(
            backbone="resnet50",  # RC has the original one: resnet50-caffe
            backbone_weights="imagenet",  # RC
            resize=256,  # RC
            squash=False,  # RC: the shape is kept
            crop=224,  # RC
            min_crop_scale=0.8,  # RC
            mirror=True,  # RC
            test_view="full",  # section 5.1
            cached_crops=4,  # ours: fresh crops need --no-feature-cache
        ),
        model=ModelConfig(
            embedding_dim=2048,  # RC
            text_blocks=(3, 4, 6, 1),  # RC's "ResNet-50" text net
            text_width=1.0,  # RC: 256 to 2048 channels
            word_dim=300,  # GoogleNews word2vec
            position_shift=True,  # section 3.2
            relu=True,  # section 4.1
            dropout=0.75,  # RC
            feature_dropout=0.0,  # none in RC
            word_dropout=0.0,  # none in RC
            classifier_bias=True,  # RC, on Flickr30k with ResNet-50
            classifier_scale=0.0,  # RC: a plain softmax
            classifier_sample_rate=1.0,  # RC: over all classes
        ),
        stage1=stage1,
        stage2=with_ranking(
            stage1,
            epochs=60,  # RC: 40 at 0.1, 20 at 0.01
            milestones=(40,),
            multipliers=replace(stage1_rates, backbone=0.001, backbone_bias=0.02),  # RC: effective 1e-4 and 0.002
            ranking_weight=2.0,  # rank : image : text is 2 : 1 : 0.1
            image_weight=1.0,
            text_weight=0.1,
            margin=1.0,  # RC
            negatives="hardest_in_pool",  # RC
            negative_pool=256,  # RC
        ),
    )


def paper_flickr30k_vgg19() -> Config:
    """Zheng et al. 2020 on Flickr30k with VGG-19; the rest is as with ResNet-50."""
    paper = paper_flickr30k()
    return replace(
        paper,
        preset="paper-flickr30k-vgg19",
        image=replace(paper.image, backbone="vgg19"),
        model=replace(paper.model, classifier_bias=False),  # RC, on Flickr30k with VGG-19
    )


def paper_flickr30k_resnet152() -> Config:
    """Zheng et al. 2020 on Flickr30k with ResNet-152 as the image CNN and its like as the text CNN."""
    paper = paper_flickr30k()
    return replace(
        paper,
        preset="paper-flickr30k-resnet152",
        image=replace(paper.image, backbone="resnet152"),
        # ResNet-152 has blocks 3, 8, 36, 3; RC keeps one of the last stage's with ResNet-50, and so it is here.
        model=replace(paper.model, text_blocks=(3, 8, 36, 1)),
    )


def paper_coco() -> Config:
    """Zheng et al. 2020 on MSCOCO with ResNet-50 (section 5.1 and RC); the rest is as on Flickr30k."""
    paper = paper_flickr30k()
    return replace(
        paper,
        preset="paper-coco",
        model=replace(
            paper.model,
            dropout=0.5,  # RC
            classifier_bias=False,  # RC
        ),
        stage1=replace(paper.stage1, epochs=90),  # RC
        stage2=replace(
            paper.stage2,
            epochs=21,  # RC: 15 at 0.1, 5 at 0.01, 1 at 0.001
            milestones=(15, 20),
        ),
    )


def paper_cuhk_pedes() -> Config:
    """Zheng et al. 2020 on CUHK-PEDES with ResNet-50 (section 5.1 and RC); the rest is as on Flickr30k.

    Each person is one class; there are 11,003. Each caption has random negatives from the batch.
    """
    paper = paper_flickr30k()
    return replace(
        paper,
        preset="paper-cuhk-pedes",
        text=replace(paper.text, max_words=56),  # RC
        image=replace(paper.image, squash=True),  # RC: 256x256 for photos of any shape
        model=replace(
            paper.model,
            dropout=0.8,  # RC
            classifier_bias=True,  # RC
        ),
        stage1=replace(paper.stage1, epochs=180),  # RC
        stage2=replace(
            paper.stage2,
            epochs=61,  # RC: 40 at 0.1, 21 at 0.01
            milestones=(40,),
            text_weight=0.5,  # rank : image : text is 2 : 1 : 0.5
            negatives="random",  # RC
        ),
    )


def paper_cuhk_pedes_vgg16() -> Config:
    """Zheng et al. 2020 on CUHK-PEDES with VGG-16; the rest is as with ResNet-50.

    The image head is that of VGG-19; about RC's, see `matconvnet.names.with_dense_head`.
    """
    paper = paper_cuhk_pedes()
    return replace(
        paper,
        preset="paper-cuhk-pedes-vgg16",
        image=replace(paper.image, backbone="vgg16"),
        stage1=replace(paper.stage1, epochs=150),  # RC
        stage2=replace(paper.stage2, epochs=60),  # RC: 40 at 0.1, 20 at 0.01
    )


def with_ranking(stage1: StageConfig, **values: Any) -> RankingStageConfig:
    """Stage II with the settings of Stage I, except `values`."""
    return RankingStageConfig(**{**vars(stage1), **values})


def flickr8k() -> Config:
    """Settings for data sets of some thousand photos, for training on a CPU.

    Departures from Zheng et al. 2020: a classifier of scaled cosines, without a ReLU before it, which learns captions
    in fewer epochs (see examples/measurements.md); AdamW, a cosine schedule and five captions per photo in each step; a
    small text CNN and embedding; in Stage II, the hardest negatives of the batch, with a margin of 0.2 (VSE++). The
    image CNN is frozen in both stages, so its features are computed only once.
    """
    paper = paper_flickr30k()
    stage1 = replace(
        paper.stage1,
        epochs=30,
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
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=2.0,
    )
    return replace(
        paper,
        preset="flickr8k",
        text=replace(paper.text, lowercase=True),  # GloVe and most other vectors are lower-case
        image=replace(paper.image, resize=224, test_view="crop", cached_crops=0),
        model=replace(
            paper.model,
            embedding_dim=512,
            text_blocks=(1, 1, 1),
            text_width=0.25,
            relu=False,
            dropout=0.1,
            feature_dropout=0.3,
            word_dropout=0.2,
            classifier_bias=False,
            classifier_scale=16.0,
            classifier_sample_rate=1.0,
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


def flickr8k_384() -> Config:
    """As "flickr8k", but with photos of 384 pixels and a text CNN twice as wide: it finds more and takes longer.

    examples/measurements.md has what it gains.
    """
    small = flickr8k()
    return replace(
        small,
        preset="flickr8k-384",
        image=replace(small.image, resize=384, crop=384),
        model=replace(small.model, text_width=0.5),
    )


def flickr8k_fine_tuned() -> Config:
    """As "flickr8k-384", but Stage II also trains the last part of a ResNet, on cached maps of what comes before.

    The learning rate is 1.5e-3 for the CNN and 3e-4 for the rest; examples/measurements.md has what it gains.
    """
    frozen = flickr8k_384()
    return replace(
        frozen,
        preset="flickr8k-fine-tuned",
        image=replace(frozen.image, frozen_until="layer3"),
        stage2=replace(
            frozen.stage2,
            epochs=9,
            batch_size=64,
            learning_rate=3e-4,
            multipliers=replace(frozen.stage2.multipliers, backbone=5.0),
            weight_decay=0.1,
            warmup_epochs=1.0,
        ),
    )


def scenes() -> Config:
    """For the built-in scenes: small pictures, so the image CNN trains from scratch in both stages, within minutes."""
    base = flickr8k()
    learning = replace(base.stage1.multipliers, backbone=1.0, backbone_bias=1.0)
    return replace(
        base,
        preset="scenes",
        image=ImageConfig(
            backbone="resnet10",  # half the time of ResNet-18: more steps are worth more than more layers
            backbone_weights="none",
            resize=48,
            squash=False,
            crop=48,
            min_crop_scale=0.9,
            mirror=False,  # captions tell left from right
            test_view="crop",
            cached_crops=0,
            pooling=(2, 2),  # keeps left and right
        ),
        model=replace(
            base.model,
            text_blocks=(1, 2, 2),  # sees 11 words at a time instead of 5: who wears what, and on which side
            word_dim=100,
            feature_dropout=0.0,
            word_dropout=0.0,
        ),
        stage1=replace(base.stage1, multipliers=learning, epochs=12, captions_per_image=3, learning_rate=4e-3),
        stage2=replace(
            base.stage2,
            multipliers=learning,
            epochs=20,
            batch_size=64,
            captions_per_image=2,
            learning_rate=3e-3,
            detail_weight=10.0,  # sides come last: with 4, a short run left them at chance
            detail_margin=0.1,
            details="scenes",
            swap_in_named=True,
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "scenes": scenes,
    "flickr8k": flickr8k,
    "flickr8k-384": flickr8k_384,
    "flickr8k-fine-tuned": flickr8k_fine_tuned,
    "paper-flickr30k": paper_flickr30k,
    "paper-flickr30k-vgg19": paper_flickr30k_vgg19,
    "paper-flickr30k-resnet152": paper_flickr30k_resnet152,
    "paper-coco": paper_coco,
    "paper-cuhk-pedes": paper_cuhk_pedes,
    "paper-cuhk-pedes-vgg16": paper_cuhk_pedes_vgg16,
}


def build_preset(name: str) -> Config:
    """The preset `name`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset '{name}'; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
