from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.models.image_encoder import ImageEncoder, _pooled_windows
from dpce_cli.core.retrieval.encoding import encode_images
from dpce_cli.core.seeding import generator_for
from tests.oracles.whole_photo import embedding_of_windows


def photos(height: int, width: int) -> Tensor:
    """Two photos as the two views of one."""
    generator = generator_for("photo", height, width)
    return torch.randint(0, 256, (1, 2, 3, height, width), generator=generator).to(torch.uint8)


def build(backbone: str, crop: int) -> ImageEncoder:
    """In eval mode, with weights drawn from a fixed seed; a VGG has thin layers, for speed."""
    torch.manual_seed(0)
    with torch.device("meta" if backbone == "vgg16" else "cpu"):
        encoder = ImageEncoder(backbone=backbone, embedding_dim=8, crop=crop)
    if backbone == "vgg16":
        encoder.backbone.features = nn.Sequential(nn.MaxPool2d(32), nn.Conv2d(3, 512, 1), nn.ReLU())
        encoder.backbone.classifier = nn.Sequential(nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout())
        encoder.head.to_empty(device="cpu")
        for layer in encoder.head:
            if isinstance(layer, nn.BatchNorm1d):
                layer.reset_running_stats()
                layer.reset_parameters()
    encoder.reset_parameters(generator_for("head"), None)
    return encoder.eval()


# The sides of the maps: 8 x 10, 7 x 9 with a VGG and 8 x 9 else, and one that only just exceeds a crop's.
@pytest.mark.parametrize("size", [(256, 320), (255, 288), (224, 256)])
@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_a_whole_photo_is_the_sum_over_the_windows_of_its_map(backbone: str, size: tuple[int, int]) -> None:
    encoder, views = build(backbone, 224), photos(*size)
    expected = sum(embedding_of_windows(encoder, view, side=7) for view in views[0])
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(encode_images(encoder, views)[0], F.normalize(expected, dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_a_window_is_as_large_as_the_map_of_a_training_crop(backbone: str) -> None:
    encoder, views = build(backbone, 64), photos(96, 160)
    expected = sum(embedding_of_windows(encoder, view, side=2) for view in views[0])
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(encode_images(encoder, views)[0], F.normalize(expected, dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("crop", [32, 48, 224])
def test_a_photo_of_the_size_of_a_crop_is_one_window(crop: int) -> None:
    encoder, views = build("resnet18", crop), photos(crop, crop)
    expected = sum(embedding_of_windows(encoder, view, side=-(-crop // 32)) for view in views[0])
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(encode_images(encoder, views)[0], F.normalize(expected, dim=0), atol=1e-5, rtol=0)
    with torch.inference_mode():
        assert encoder.pooled_features(views[0]).shape == (2, 512)


def test_a_larger_photo_is_more_than_its_centre() -> None:
    encoder, views = build("resnet18", 224), photos(256, 320)
    centre = views[..., 16:240, 48:272]
    assert not torch.allclose(encode_images(encoder, views), encode_images(encoder, centre), atol=1e-3)


@pytest.mark.parametrize("pooling", [(1, 2), (2, 2), (3, 2)])
def test_the_cells_of_a_window_are_those_of_adaptive_pooling(pooling: tuple[int, int]) -> None:
    maps = torch.randn(2, 4, 8, 9, generator=generator_for("maps"))
    found = _pooled_windows(maps, 7, pooling)
    pool = nn.AdaptiveAvgPool2d(pooling)
    expected = [[pool(maps[:, :, y : y + 7, x : x + 7]).flatten(1) for x in range(3)] for y in range(2)]
    torch.testing.assert_close(found, torch.stack([torch.stack(line, -1) for line in expected], -2))


def test_one_cell_is_exactly_the_mean_of_the_window() -> None:
    maps = torch.randn(2, 4, 8, 9, generator=generator_for("maps"))
    assert _pooled_windows(maps, 7, (1, 1)).equal(F.avg_pool2d(maps, 7, stride=1))
