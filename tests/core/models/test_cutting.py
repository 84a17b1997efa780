from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from dpce_cli.core.errors import ConfigError
from dpce_cli.core.models import backbones
from dpce_cli.core.models.image_encoder import ImageEncoder

PLACES = [
    ("resnet18", "layer3", 64),
    ("resnet18", "layer4.0", 64),
    ("resnet50-v1", "layer3", 64),
    ("resnet50-caffe", "layer3", 64),
    ("vgg11", "features", 64),
    ("vgg16-caffe", "features.23", 224),
    ("densenet121", "features.denseblock3", 64),
    ("mobilenet_v3_small", "features.8", 64),
    ("efficientnet_b0", "features.5", 64),
    ("regnet_y_400mf", "trunk_output.block3", 64),
    ("convnext_tiny", "features.5", 64),
    ("swin_t", "features.4", 64),
    ("vit_b_32", "encoder.layers.encoder_layer_8", 224),
    ("timm:tf_efficientnet_lite0", "blocks.4", 64),
    ("timm:vit_tiny_patch16_224", "blocks.5", 224),
]


@pytest.mark.parametrize(("backbone", "place", "crop"), PLACES)
def test_the_two_parts_give_what_the_whole_cnn_gives(backbone: str, place: str, crop: int) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone=backbone, embedding_dim=4, crop=crop, frozen_until=place)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    photos = torch.randint(0, 256, (2, 3, crop, crop), dtype=torch.uint8)
    with torch.inference_mode():
        maps = encoder.eval().frozen_maps(photos)
        assert maps.dim() > 2
        assert torch.allclose(encoder(maps), encoder(photos), rtol=1e-5, atol=1e-6)
        # The frozen tensors are those of the lower part: without the others, the maps stay the same.
        for name, tensor in encoder.backbone.state_dict().items():
            if name not in encoder.frozen_tensors and tensor.is_floating_point():
                tensor.zero_()
        assert encoder.frozen_maps(photos).equal(maps)


def test_a_step_on_maps_is_that_of_the_whole_cnn_with_a_frozen_lower_part() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone="resnet18", embedding_dim=4, crop=64, frozen_until="layer3")
    names = dict(encoder.named_parameters())
    for name in encoder.frozen_tensors & encoder.backbone.state_dict().keys():
        if f"backbone.{name}" in names:
            names[f"backbone.{name}"].requires_grad_(False)
    encoder.train()
    photos = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    gradients = []
    for images in (photos, encoder.frozen_maps(photos)):
        encoder.zero_grad()
        encoder(images).square().sum().backward()
        gradients.append({name: value.grad for name, value in names.items()})
    assert [name for name, value in gradients[0].items() if value is None] == [
        name for name in names if name.removeprefix("backbone.") in encoder.frozen_tensors
    ]
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert gradient is None or (other is not None and torch.allclose(gradient, other, rtol=1e-4, atol=1e-5)), name
    statistics = [value for name, value in encoder.state_dict().items() if name.endswith("num_batches_tracked")]
    assert not any(value for value in statistics[:-2])
    assert all(value == 2 for value in statistics[-2:])  # those of the head


def test_a_cut_encoder_has_the_state_of_an_uncut_one() -> None:
    with torch.device("meta"):
        cut, whole = (
            ImageEncoder(backbone="resnet18", embedding_dim=4, frozen_until=place) for place in ("layer3", "")
        )
    assert cut.state_dict().keys() == whole.state_dict().keys()


def test_a_copied_encoder_computes_with_its_own_weights() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone="resnet18", embedding_dim=4, crop=64, frozen_until="layer3").eval()
    copied = deepcopy(encoder)
    maps = torch.rand(2, 256, 4, 4)
    with torch.inference_mode():
        before = encoder(maps)
        for parameter in copied.parameters():
            parameter.zero_()
        assert encoder(maps).equal(before)
        assert not copied(maps).any()


@pytest.mark.parametrize(
    ("backbone", "place", "instead"),
    [
        ("resnet50-v1", "layer5", "choose one of conv1, bn1, relu, maxpool, layer1, layer2, layer3, or a part of one"),
        ("resnet50-v1", "layer4", "choose one of"),  # nothing after it learns
        ("resnet50-v1", "layer3.0.conv1", "choose one of"),  # a block has a second way around it
        ("efficientnet_b0", "blocks.3", "choose one of features.0, features.1, "),
        ("vit_b_32", "conv_proj", "choose one of encoder.dropout, encoder.layers"),
    ],
)
def test_another_place_is_refused_with_the_names_of_those_that_there_are(
    backbone: str, place: str, instead: str
) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=f"^image.frozen_until={place}: this image CNN cannot .*{instead}"),
    ):
        ImageEncoder(backbone=backbone, embedding_dim=4, frozen_until=place)


def test_a_place_after_the_last_map_is_refused() -> None:
    with torch.device("meta"):
        encoder = ImageEncoder(backbone="vgg11", embedding_dim=4, frozen_until="classifier.0")
        with pytest.raises(ConfigError, match=r"classifier\.0: .* comes after its last map; choose an earlier one"):
            encoder.frozen_maps(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))


class BranchingCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 4)

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        maps = self.conv(photos)
        pooled: torch.Tensor = self.fc((-maps if maps.sum() > 0 else maps).mean((2, 3)))
        return pooled


def test_a_cnn_that_cannot_be_followed_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.VARIANTS, "branching", BranchingCNN)
    with pytest.raises(ConfigError, match=r"^image\.frozen_until=conv: .* depends on the photos \(.* leave .* empty$"):
        ImageEncoder(backbone="branching", embedding_dim=4, frozen_until="conv")
