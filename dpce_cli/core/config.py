"""All settings of a run, in one immutable tree that is stored with the results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dpce_cli.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions become token ids."""

    max_words: int
    """Positions of the text CNN; the first `max_words` known words of a caption are kept."""
    lowercase: bool
    """Fold case before looking words up; the paper's word2vec dictionary is case-sensitive."""
    min_count: int
    """Words that are rarer in the training captions are left out of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How photos become the CNN's input."""

    backbone: str
    """The image CNN: a classification model of torchvision such as "resnet50" or "efficientnet_b0", "timm:NAME" for one
    of timm, or a variant for the authors' weights: "resnet50-v1" is the original ResNet-50, with strides on the 1x1
    convolutions; "resnet50-caffe", "vgg16-caffe" and "vgg19-caffe" take weights from MatConvNet."""
    backbone_weights: str
    """"imagenet" (the published ones), "none" (from scratch) or the path of a state dict."""
    resize: int
    """Length of the short side after resizing, in pixels."""
    squash: bool
    """Resize photos to a square, as the paper does for pedestrians; otherwise, their shape is kept."""
    crop: int
    """Side of the square input of the CNN, in pixels. Together with `resize`, a larger one finds more, even in small
    photos, which are enlarged; the CNN's time grows with its square."""
    min_crop_scale: float
    """Smallest side of a random training crop, relative to the photo."""
    mirror: bool
    """Flip half of the training photos, and average test embeddings over photo and mirror image. False keeps left and
    right apart."""
    test_view: Literal["crop", "full"]
    """Input of test embeddings: "crop" is the central crop; "full" is the whole photo, summed over all positions of a
    crop on the CNN's map, as in the paper. Validation during training always uses the central crop."""
    cached_crops: int
    """Random crops per photo in the feature cache, in addition to the central crop and its mirror image."""
    frozen_until: str = ""
    """Name of the last part of the image CNN that never learns, such as "layer3" of a ResNet; its batch norms and those
    after it keep their statistics. Its maps are cached, also in a Stage I that freezes the whole CNN. Empty: the whole
    CNN learns or is frozen."""
    pooling: tuple[int, ...] = (1, 1)
    """Rows and columns of the grid whose cells average the last feature map; more than [1, 1], the paper's, keep
    where in the photo something is. Only for torchvision's ResNets."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the two encoders and of the shared classifier."""

    embedding_dim: int
    """Length of an embedding."""
    text_blocks: tuple[int, ...]
    """Residual blocks in each stage of the text CNN; (3, 4, 6, 1) is the paper's."""
    text_width: float
    """Factor on the text CNN's channel counts; 1 is the paper's."""
    word_dim: int
    """Length of a word vector if training starts without word vectors."""
    position_shift: bool
    """Place captions at random positions of the text CNN, in training and testing; otherwise, left-aligned."""
    dropout: float
    """Dropout before the shared classifier, on both embeddings."""
    feature_dropout: float
    """Dropout on the image CNN's pooled features; 0 in the paper."""
    word_dropout: float
    """Share of words that are dropped in training; 0 in the paper."""
    relu: bool
    """Whether the losses use embeddings after a ReLU, as in the paper; otherwise, the embeddings of retrieval."""
    classifier_bias: bool
    """Whether the shared classifier has a bias."""
    classifier_scale: float
    """0: plain softmax, as in the paper. Above 0: scale of the cosines between embeddings and class weights."""
    classifier_sample_rate: float
    """Share of the classes in the softmax of each step: the classes of the batch, and others at random, as in Partial
    FC. 1: all classes, as in the paper. Less than 1 is faster and needs less memory for a million classes."""


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """Multipliers of the learning rate, one per parameter group; 0 freezes the group."""

    backbone: float
    """Filters and batch norm of the image CNN."""
    backbone_bias: float
    """Biases of the image CNN."""
    weight: float
    """Convolutions and linear layers of the text CNN and of the image head."""
    bias: float
    """Their biases."""
    bn_scale: float
    """Batch norm scales outside the image CNN."""
    bn_shift: float
    """Batch norm shifts outside the image CNN."""
    words: float
    """Word vectors."""
    classifier: float
    """The shared classifier's weights."""
    classifier_bias: float
    """The shared classifier's bias."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of training."""

    epochs: int
    """Passes over the training photos."""
    batch_size: int
    """Photos per step."""
    captions_per_image: int
    """Captions per photo in each step; 1 in the paper."""
    optimizer: Literal["sgd", "adamw"]
    """"sgd" is with Nesterov momentum 0.9."""
    learning_rate: float
    """Base learning rate; it is multiplied by `multipliers` for each parameter group."""
    multipliers: LearningRates
    weight_decay: float
    schedule: Literal["steps", "cosine"]
    """"steps": times 0.1 after each of `milestones`; "cosine": a half cosine down to 0."""
    milestones: tuple[int, ...]
    """Epochs after which a "steps" schedule divides the learning rate by 10."""
    warmup_epochs: float
    """Epochs of linear warm-up, for both schedules; 0: none."""
    image_weight: float
    """Weight of the image instance loss."""
    text_weight: float
    """Weight of the text instance loss."""
    label_smoothing: float
    """Share of the instance loss's target that is spread over all instances; 0 in the paper."""
    accumulation_steps: int = 1
    """Number of parts of a batch; the networks process one after another, to use less memory. The instance loss is
    that of the whole batch, but batch norms see one part at a time, and negatives come from the same part."""
    clip_norm: float = 0.0
    """Largest L2 norm of all gradients together; 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class RankingStageConfig(StageConfig):
    """Stage II, which adds the ranking loss."""

    ranking_weight: float
    """Weight of the ranking loss; 0 leaves it out."""
    margin: float
    """Margin of the ranking loss."""
    negatives: Literal["hardest_in_batch", "hardest_in_pool", "random"]
    """Negatives of the ranking loss; "random" ones are from the batch."""
    negative_pool: int
    """Captions of other photos per step for "hardest_in_pool"; 256 in the paper."""
    detail_weight: float = 0.0
    """Weight of the loss against captions with one detail swapped, such as a colour or a number; 0: there are none, as
    in the paper."""
    detail_margin: float = 0.05
    """Margin of that loss."""
    details: str = "english"
    """Words that are swapped: "english", "scenes" (for the built-in scenes), or the path of a TOML file of words."""
    swap_in_named: bool = False
    """Whether a detail may become a word that another caption of the same photo has. Such a caption may be true, so
    this is for data where it rarely is, such as the built-in scenes: most have things on both sides."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings that decide what a run computes."""

    preset: str
    """Name of the preset it is based on."""
    seed: int
    text: TextConfig
    image: ImageConfig
    model: ModelConfig
    stage1: StageConfig
    stage2: RankingStageConfig

    def __post_init__(self) -> None:
        checks = {
            "text.max_words of at least 1": self.text.max_words >= 1,
            "image.resize of at least image.crop, which is at least 32": self.image.resize >= self.image.crop >= 32,
            "image.crop of at least 224 with a Caffe VGG": self.image.crop >= 224
            or self.image.backbone not in ("vgg16-caffe", "vgg19-caffe"),
            "image.pooling with two numbers from 1 to 16": len(self.image.pooling) == 2
            and 1 <= min(self.image.pooling) <= max(self.image.pooling) <= 16,
            "image.min_crop_scale above 0 and up to 1": 0 < self.image.min_crop_scale <= 1,
            "model.embedding_dim and model.word_dim of at least 1": min(self.model.embedding_dim, self.model.word_dim)
            >= 1,
            "model.text_blocks with 1 to 4 numbers from 1 to 100": 1 <= len(self.model.text_blocks) <= 4
            and 1 <= min(self.model.text_blocks) <= max(self.model.text_blocks) <= 100,
            "model.classifier_sample_rate above 0 and up to 1": 0 < self.model.classifier_sample_rate <= 1,
            "model.dropout, model.feature_dropout and model.word_dropout below 1": max(
                self.model.dropout, self.model.feature_dropout, self.model.word_dropout
            )
            < 1,
        }
        for name, stage in (("stage1", self.stage1), ("stage2", self.stage2)):
            checks |= {
                f"{name}.epochs of at least 1": stage.epochs >= 1,
                f"{name}.batch_size of at least 2": stage.batch_size >= 2,
                f"{name}.accumulation_steps of at least 1 that divides batch_size into parts of 2 or more": (
                    stage.accumulation_steps >= 1
                    and stage.batch_size % stage.accumulation_steps == 0
                    and stage.batch_size // stage.accumulation_steps >= 2
                ),
                f"{name}.accumulation_steps = 1 with model.classifier_sample_rate below 1": (
                    stage.accumulation_steps == 1 or self.model.classifier_sample_rate == 1
                ),
                f"{name}.captions_per_image of at least 1": stage.captions_per_image >= 1,
                f"{name}.label_smoothing below 1": stage.label_smoothing < 1,
                f"{name}.multipliers with one above 0": any(dataclasses.astuple(stage.multipliers)),
            }
        checks["stage2.negative_pool of at least 1"] = self.stage2.negative_pool >= 1
        checks["stage2.captions_per_image = 1 with hardest_in_pool"] = (
            self.stage2.negatives != "hardest_in_pool" or self.stage2.captions_per_image == 1
        )
        for requirement, met in checks.items():
            if not met:
                raise ConfigError(f"the configuration needs {requirement}; change it with --set KEY=VALUE")

    def stage(self, number: int) -> StageConfig:
        """Stage I's settings or Stage II's, by `number`, 1 or 2."""
        return self.stage1 if number == 1 else self.stage2

    def to_dict(self) -> dict[str, Any]:
        """The tree as JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def settings(self) -> list[str]:
        """Every value but the preset's name, in the form that `with_settings` takes."""
        tree = self.to_dict()
        values = {key: _get(tree, key) for key in _keys(tree) if key != "preset"}
        return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], source: str) -> Config:
        """Read a tree written by `to_dict`.

        Raises:
            ConfigError: a key without a default is missing, or a key is unknown or of another type; the message begins
            with `source`.
        """
        config = _read(cls, value, source, "")
        assert isinstance(config, Config)
        return config

    def with_settings(self, settings: list[str]) -> Config:
        """Change values named as in `stage1.epochs=20`; tuples are written as `model.text_blocks=[1,1,1]`.

        Raises:
            ConfigError: a setting is malformed, its key is unknown, or its value has another type.
        """
        tree = self.to_dict()
        keys = [key for key in _keys(tree) if key != "preset"]
        for setting in settings:
            key, separator, text = setting.partition("=")
            key = key.strip()
            if not separator or key not in keys:
                raise ConfigError(f"--set {setting}: expected KEY=VALUE with one of {', '.join(keys)}")
            section, _, name = key.rpartition(".")
            branch = _get(tree, section) if section else tree
            value = _parsed(text)
            branch[name] = text if isinstance(branch[name], str) and not isinstance(value, str) else value
        return Config.from_dict(tree, "--set")


def _parsed(text: str) -> Any:
    """A number, a truth value or a list as JSON writes it, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a number of thousands of digits, or thousands of nested lists
        return text


def stage2_config(first: Config, dataset: Config, settings: list[str]) -> Config:
    """Stage I's configuration with the data set's Stage II section and frozen part of the CNN, changed by `settings`.

    Raises:
        ConfigError: a setting changes anything else.
    """
    image = dataclasses.replace(first.image, frozen_until=dataset.image.frozen_until)
    base = dataclasses.replace(first, image=image, stage2=dataset.stage2)
    config = base.with_settings(settings)
    own = ("stage2.", "image.frozen_until:")
    if other := [line for line in differences(base, config) if not line.startswith(own)]:
        raise ConfigError(
            f"--set {'; '.join(other)}: Stage I decided that; train-stage2 takes stage2.* and image.frozen_until only"
        )
    return config


def differences(old: Config, new: Config) -> list[str]:
    """What changed from one configuration to another, one `key: old -> new` for each value."""
    before, after = old.to_dict(), new.to_dict()
    return [
        f"{key}: {_get(before, key)} -> {_get(after, key)}"
        for key in _keys(before)
        if _get(before, key) != _get(after, key)
    ]


def _get(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def _keys(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in tree.items():
        keys += _keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return keys


def _read(kind: Any, value: Any, source: str, key: str) -> Any:
    def wrong(expected: str) -> ConfigError:
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
        return ConfigError(f"{source}: {key or 'the configuration'} is {shown}; expected {expected}")

    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise wrong("a table")
        hints = get_type_hints(kind)
        newer = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
        if differing := sorted((hints.keys() ^ value.keys()) - (newer - value.keys())):
            raise ConfigError(
                f"{source}: {key or 'the configuration'} lacks or does not know {', '.join(differing)}; "
                "it was written by another version of dpce: run prepare-vocab again"
            )
        prefix = f"{key}." if key else ""
        return kind(**{name: _read(hints[name], value[name], source, prefix + name) for name in value})
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise wrong("one of " + ", ".join(get_args(kind)))
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise wrong("a list such as [1, 1, 1]")
        return tuple(_read(int, item, source, key) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise wrong("a smaller number") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong({int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind])
    if kind in (int, float) and not 0 <= value < float("inf"):
        raise wrong("a number of at least 0")
    if kind is int and value >= 2**63:
        raise wrong("a number below 2^63")
    return value
