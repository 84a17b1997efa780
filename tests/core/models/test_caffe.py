from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models import backbones
from dpce_cli.core.models.backbones import load_backbone_weights
from dpce_cli.core.models.caffe import CaffeVGG
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.models.matconvnet.network import read_network
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.sharing.importing import import_backbone
from tests.mat_files import MEAN, Draw, Params, dag, resnet_params, save_v7, save_v73, simple, vgg_params
from tests.oracles import matconvnet as oracle


def photo(height: int, width: int) -> Tensor:
    pixels = torch.randint(0, 256, (1, 3, height, width), generator=generator_for("photo", height, width))
    return pixels.to(torch.uint8)


def minus_mean(images: Tensor) -> oracle.Array:
    pixels: oracle.Array = images[0].permute(1, 2, 0).double().numpy()
    return np.subtract(pixels, MEAN)


def encoder_from(path: Path, folder: Path) -> ImageEncoder:
    """An encoder with the CNN of a MatConvNet file, which is converted to a weights file first."""
    name = import_backbone(read_network(path), folder / "weights.pth")
    encoder = ImageEncoder(backbone=name, embedding_dim=4)
    encoder.reset_parameters(generator_for("head"), load_backbone_weights(name, str(folder / "weights.pth")))
    return encoder.eval()


@pytest.fixture(scope="module")
def resnet() -> Params:
    draw = Draw(0)
    resnet_params(draw, classes=1000)
    return draw.params


@pytest.fixture(scope="module")
def resnet_encoder(resnet: Params, tmp_path_factory: pytest.TempPathFactory) -> ImageEncoder:
    folder = tmp_path_factory.mktemp("resnet")
    return encoder_from(save_v73(folder / "imagenet-resnet-50-dag.mat", dag(resnet, pooled=None)), folder)


# Last maps of 7 x 7, 7 x 8 and 8 x 8; odd and even ones before the first pooling.
@pytest.mark.parametrize(("height", "width"), [(224, 224), (225, 257), (258, 255)])
def test_resnet50_computes_what_matconvnet_does(
    resnet: Params, resnet_encoder: ImageEncoder, height: int, width: int
) -> None:
    images = photo(height, width)
    expected = oracle.resnet50(resnet, minus_mean(images)).reshape(-1, 2048)
    with torch.inference_mode():
        windows = resnet_encoder.window_features(images)[0].numpy()
    assert windows.shape == expected.shape
    assert np.abs(windows - expected).max() < 1e-5 * np.abs(expected).max()


def test_torchvisions_pooling_gives_other_features(resnet: Params, resnet_encoder: ImageEncoder) -> None:
    images = photo(224, 224)
    expected = oracle.resnet50(resnet, minus_mean(images)).ravel()
    older = copy.deepcopy(resnet_encoder)
    older.backbone.maxpool = torch.nn.MaxPool2d(3, stride=2, padding=1)
    with torch.inference_mode():
        features = older.pooled_features(images)[0].numpy()
    assert np.abs(features - expected).max() > 1e-2 * np.abs(expected).max()


def test_an_embedding_is_the_mean_over_the_windows(resnet_encoder: ImageEncoder) -> None:
    images = torch.cat([photo(225, 257), photo(225, 257).flip(3)])
    with torch.inference_mode():
        windows = resnet_encoder.window_features(images)
        each = torch.stack([resnet_encoder(windows[:, 0]), resnet_encoder(windows[:, 1])])
        torch.testing.assert_close(resnet_encoder(images), each.mean(0), rtol=1e-4, atol=1e-3)


def test_a_photo_of_one_window_can_be_cached_and_a_larger_one_not(resnet_encoder: ImageEncoder) -> None:
    with torch.inference_mode():
        features = resnet_encoder.pooled_features(photo(224, 224))
        torch.testing.assert_close(resnet_encoder(features), resnet_encoder(photo(224, 224)))
        with pytest.raises(ConfigError, match=r"a photo of 257 x 225 pixels has 2 windows.*--no-feature-cache"):
            resnet_encoder.pooled_features(photo(225, 257))


def test_maps_of_several_windows_are_refused_with_the_size_of_their_photo() -> None:
    encoder = ImageEncoder(backbone="resnet50-caffe", embedding_dim=4, crop=257, frozen_until="layer3").eval()
    with torch.inference_mode():
        maps = encoder.frozen_maps(photo(257, 257))
        with pytest.raises(ConfigError, match=r"a photo of 257 x 257 pixels has 4 windows.*--no-feature-cache"):
            encoder.pooled_features(maps)


def test_a_small_photo_has_one_window(resnet_encoder: ImageEncoder) -> None:
    with torch.inference_mode():
        assert resnet_encoder.pooled_features(photo(64, 96)).shape == (1, 2048)


HIDDEN = 64


class ThinCaffeVGG(CaffeVGG):
    """fc6 and fc7 have `HIDDEN` outputs, not 4096: the weights of a whole VGG take half a minute to draw and save."""

    def __init__(self, configuration: str) -> None:
        with torch.device("meta"):
            super().__init__(configuration)
        self.features.to_empty(device="cpu")
        self.mean = torch.zeros(3)
        self.classifier[0] = nn.Linear(512 * 49, HIDDEN)
        self.classifier[3] = nn.Linear(HIDDEN, HIDDEN)
        self.classifier[6] = nn.Linear(HIDDEN, 1000)


@pytest.mark.parametrize(
    ("name", "configuration", "counts"),
    [("vgg16-caffe", "D", (2, 2, 3, 3, 3)), ("vgg19-caffe", "E", (2, 2, 4, 4, 4))],
)
def test_vgg_computes_what_matconvnet_does_up_to_fc7(
    name: str, configuration: str, counts: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backbones.VARIANTS, name, partial(ThinCaffeVGG, configuration))
    draw = Draw(0)
    vgg_params(draw, counts, hidden=HIDDEN, classes=1000)
    encoder = encoder_from(save_v7(tmp_path / "imagenet-vgg-verydeep.mat", simple(draw.params)), tmp_path)
    images = photo(224, 260)  # the third map is 65 wide
    expected = oracle.vgg(draw.params, minus_mean(images), counts).reshape(-1, HIDDEN)
    with torch.inference_mode():
        windows = encoder.window_features(images)[0].numpy()
    assert windows.shape == expected.shape == (2, HIDDEN)
    assert np.abs(windows - expected).max() < 1e-5 * np.abs(expected).max()
    assert (windows < 0).any()
