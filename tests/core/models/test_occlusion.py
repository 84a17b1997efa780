from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.models.occlusion import encode_without_windows, find_map
from dpce_cli.core.seeding import generator_for
from tests.oracles.whole_photo import embedding_of_windows


def build(backbone: str, crop: int, frozen_until: str = "", pooling: tuple[int, int] = (1, 1)) -> ImageEncoder:
    """In eval mode, with weights drawn from a fixed seed."""
    torch.manual_seed(0)
    encoder = ImageEncoder(
        backbone=backbone, embedding_dim=8, crop=crop, frozen_until=frozen_until, pooling=pooling
    ).eval()
    encoder.reset_parameters(generator_for("head"), None)
    return encoder


def random_view(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=generator_for("view")).to(torch.uint8)


def without_window(maps: Tensor, rows: slice, columns: slice) -> Tensor:
    changed = maps.clone()
    changed[:, :, rows, columns] = 0
    return changed


def block(index: int, size: int) -> slice:
    """The cells of four successive blocks of `size` cells, of which some may be outside of the map."""
    return slice(max(0, index * size), max(0, (index + 4) * size))


@pytest.mark.parametrize("pooling", [(1, 1), (2, 3)])
def test_a_crop_without_each_window_is_what_a_cut_cnn_gives_for_changed_maps(pooling: tuple[int, int]) -> None:
    encoder, view = build("resnet18", 96, "layer2", pooling), random_view(96, 96)
    found = find_map(encoder, view)
    assert found == ("layer2", 12, 12)  # the map of layer3 is 6 x 6
    windows = encode_without_windows(encoder, view, found)
    assert windows.shape == (15, 15, 8)
    with torch.inference_mode():
        maps = encoder.frozen_maps(view[None])
        for row in range(15):
            for column in range(15):
                changed = without_window(maps, block(row - 3, 1), block(column - 3, 1))
                torch.testing.assert_close(windows[row, column], encoder(changed)[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(windows[7, 7], encoder(maps)[0], atol=1e-3)


def test_a_whole_photo_without_each_window_is_the_mean_over_its_windows() -> None:
    encoder, view = build("resnet18", 64), random_view(96, 192)
    found = find_map(encoder, view)
    assert found == ("layer2", 12, 24)
    windows = encode_without_windows(encoder, view, found)
    assert windows.shape == (15, 27, 8)
    for row, column in ((0, 0), (4, 11), (14, 26)):
        rows, columns = block(row - 3, 1), block(column - 3, 1)
        hook = encoder.backbone.get_submodule("layer2").register_forward_hook(
            lambda module, given, maps, rows=rows, columns=columns: without_window(maps, rows, columns)
        )
        with torch.inference_mode():
            expected = encoder(view[None])[0]
        hook.remove()
        torch.testing.assert_close(windows[row, column], expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        plain = encoder(view[None])[0]
    torch.testing.assert_close(plain, embedding_of_windows(encoder, view, side=2) / 10, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "side", "place"),
    [
        ("resnet50", 224, "layer3"),
        ("resnet18", 48, "layer1"),
        ("vgg11", 224, "features.19"),
        ("resnet50-caffe", 224, "layer3"),
        ("mobilenet_v3_small", 224, "features.8"),
        ("timm:tf_efficientnet_lite0", 224, "blocks.4"),
        ("vit_b_32", 224, None),
        ("swin_t", 224, None),  # its maps have the channels last
    ],
)
def test_the_last_map_of_at_least_twelve_rows_and_columns_is_taken(backbone: str, side: int, place: str | None) -> None:
    encoder, view = build(backbone, side), random_view(side, side)
    found = find_map(encoder, view)
    assert (found and found.place) == place
    assert not any(module._forward_hooks for module in encoder.modules())
    if found:
        assert encode_without_windows(encoder, view, found).shape == (15, 15, 8)
        assert not any(module._forward_hooks for module in encoder.modules())


def test_a_cnn_whose_forward_pass_cannot_be_followed_has_no_map() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, photos: Tensor) -> Tensor:
            maps: Tensor = self.conv(photos)
            return (-maps if maps.sum() > 0 else maps).mean((2, 3))

    encoder = build("resnet18", 48)
    encoder.backbone = Branching()
    assert find_map(encoder, random_view(48, 48)) is None
