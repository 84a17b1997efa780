from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from dpce_cli.core.data.images import load_image, normalize, training_view
from dpce_cli.core.errors import CheckpointError, ConfigError
from dpce_cli.core.models import backbones, image_encoder
from dpce_cli.core.models.backbones import IMAGENET_MEAN, IMAGENET_STD, ORIGINAL_MEAN, load_backbone_weights
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.seeding import generator_for


def random_images(count: int = 2, side: int = 64) -> Tensor:
    generator = generator_for("images", count, side)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)


def build(backbone: str, embedding_dim: int = 16) -> ImageEncoder:
    """In eval mode, with weights drawn from a fixed seed."""
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone=backbone, embedding_dim=embedding_dim)
    encoder.reset_parameters(generator_for("head"), None)
    return encoder.eval()


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return build("resnet18")


@pytest.mark.parametrize(
    ("backbone", "feature_dim", "hidden"),
    [("resnet18", 512, 512), ("resnet34", 512, 512), ("resnet50", 2048, 2048), ("resnet50-v1", 2048, 2048)],
)
def test_photos_become_embeddings_by_way_of_pooled_features(backbone: str, feature_dim: int, hidden: int) -> None:
    encoder, images = build(backbone), random_images()
    with torch.inference_mode():
        features, embeddings = encoder.pooled_features(images), encoder(images)
        assert features.shape == (2, feature_dim) == (2, encoder.feature_dim)
        assert embeddings.shape == (2, 16)
        assert embeddings.isfinite().all()
        assert encoder(features).equal(embeddings)
        assert encoder(features.half()).equal(encoder(features.half().float()))
    check_head(encoder, feature_dim, hidden)


def check_head(encoder: ImageEncoder, feature_dim: int, hidden: int) -> None:
    """Linear -> BN -> ReLU -> Linear -> BN without biases on the linear layers."""
    first, bn, _, second, last = encoder.head
    assert [type(layer) for layer in encoder.head] == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d,
    ]  # fmt: skip
    assert first.weight.shape == (hidden, feature_dim)
    assert bn.num_features == hidden
    assert second.weight.shape == (16, hidden)
    assert last.num_features == 16
    assert first.bias is None
    assert second.bias is None


@pytest.mark.parametrize("backbone", ["vgg16", "vgg19"])
def test_vgg_features_are_those_of_fc7(backbone: str) -> None:
    with torch.device("meta"):
        encoder = ImageEncoder(backbone=backbone, embedding_dim=16).eval()
        features = encoder.pooled_features(torch.empty(2, 3, 64, 64, dtype=torch.uint8))
    assert features.shape == (2, 4096)
    assert encoder.feature_dim == 4096
    assert sum(isinstance(layer, nn.Conv2d) for layer in encoder.backbone.modules()) == int(backbone[3:]) - 3
    check_head(encoder, 4096, 4096)


def thin_vgg() -> models.VGG:
    """A VGG with 8 channels and layers of 16 where torchvision's has 512 and 4096."""
    with torch.device("meta"):
        vgg = models.vgg16()
    vgg.features = nn.Sequential(nn.MaxPool2d(32), nn.Conv2d(3, 8, 1))
    vgg.classifier = nn.Sequential(
        nn.Linear(8 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(True), nn.Dropout(),
        nn.Linear(16, 10),
    )  # fmt: skip
    return vgg


def test_vgg_has_neither_dropout_nor_the_relu_of_fc7_as_in_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.VARIANTS, "vgg16", thin_vgg)
    weights = {key: value.clone() for key, value in thin_vgg().state_dict().items()}
    encoder, images = build("vgg16").train(), random_images(8, 224)
    encoder.reset_parameters(generator_for("head"), weights)
    with torch.no_grad():
        features = encoder.pooled_features(images)
        assert isinstance(encoder.backbone, models.VGG)
        maps = encoder.backbone.features(normalize(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)).flatten(1)
    fc6 = torch.relu(F.linear(maps, weights["classifier.0.weight"], weights["classifier.0.bias"]))
    fc7 = F.linear(fc6, weights["classifier.3.weight"], weights["classifier.3.bias"])
    torch.testing.assert_close(features, fc7)
    assert (features < 0).any()


def test_the_published_head_maps_2048_to_2048_to_2048() -> None:
    with torch.device("meta"):
        head = ImageEncoder(backbone="resnet50-v1", embedding_dim=2048).head
    shapes = [tuple(parameter.shape) for parameter in head.parameters()]
    assert shapes == [(2048, 2048), (2048,), (2048,), (2048, 2048), (2048,), (2048,)]


def test_the_head_is_drawn_with_the_documented_deviation() -> None:
    with torch.device("meta"):
        encoder = ImageEncoder(backbone="resnet50", embedding_dim=512)
    encoder.head.to_empty(device="cpu")
    encoder.requires_grad_(False).reset_parameters(generator_for("head"), None)
    weights = encoder.head.state_dict()
    assert float(weights["0.weight"].std()) == pytest.approx((2 / 2048) ** 0.5, rel=0.01)
    assert float(weights["3.weight"].std()) == pytest.approx((2 / 512) ** 0.5, rel=0.01)


def strides(network: models.ResNet) -> list[tuple[int, int, int]]:
    """Horizontal strides of the first 1x1, the 3x3 and the shortcut of each stage's first block."""
    found = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        block = stage[0]
        found.append((block.conv1.stride[1], block.conv2.stride[1], block.downsample[0].stride[1]))
        assert all(layer.stride == (1, 1) for other in stage[1:] for layer in (other.conv1, other.conv2))
    return found


def test_resnet50_v1_has_its_strides_on_the_1x1_convolutions() -> None:
    with torch.device("meta"):
        first, newer = (ImageEncoder(backbone=name, embedding_dim=16).backbone for name in ("resnet50-v1", "resnet50"))
    assert isinstance(first, models.ResNet)
    assert isinstance(newer, models.ResNet)
    assert strides(first) == [(1, 1, 1), (2, 1, 2), (2, 1, 2), (2, 1, 2)]
    assert strides(newer) == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)]


def test_resnet50_v1_and_resnet50_differ_on_the_same_weights() -> None:
    first, newer, images = build("resnet50-v1"), build("resnet50"), random_images()
    newer.load_state_dict(first.state_dict())
    newer.mean = first.mean
    with torch.inference_mode():
        assert not torch.allclose(first.pooled_features(images), newer.pooled_features(images), rtol=0.01)


def test_photos_are_normalised_as_the_backbones_were_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, object]] = []

    def spy(images: Tensor, *, mean: object, std: object) -> Tensor:
        seen.append((mean, std))
        return images.float()

    monkeypatch.setattr(image_encoder, "normalize", spy)
    for backbone in ("resnet50", "resnet50-v1"):
        with torch.device("meta"):
            encoder = ImageEncoder(backbone=backbone, embedding_dim=4).eval()
            encoder.pooled_features(torch.empty(1, 3, 32, 32, dtype=torch.uint8))
    assert seen == [(IMAGENET_MEAN, IMAGENET_STD), (ORIGINAL_MEAN, IMAGENET_STD)]
    assert [round(255 * value, 3) for value in ORIGINAL_MEAN] == [123.68, 116.779, 103.939]


def test_the_embedding_does_not_end_in_a_relu(encoder: ImageEncoder) -> None:
    with torch.inference_mode():
        assert (encoder(random_images(8)) < 0).any()


@pytest.fixture(scope="module")
def pretrained(shared_data: Path) -> ImageEncoder:
    weights = load_backbone_weights("resnet50-v1", str(shared_data / "weights" / "resnet50-imagenet-v1.pth"))
    encoder = ImageEncoder(backbone="resnet50-v1", embedding_dim=8)
    encoder.reset_parameters(generator_for("head"), weights)
    return encoder.eval()


def test_pretrained_features_tell_photos_apart(shared_data: Path, pretrained: ImageEncoder) -> None:
    names = sorted((shared_data / "flickr8k" / "Flicker8k_Dataset").glob("*.jpg"))[:1500:500]
    photos: list[Image.Image] = [load_image(name) for name in names]
    generator = generator_for("crops")
    views = torch.stack(
        [
            training_view(photo, crop=160, min_scale=0.8, flip=True, generator=generator)
            for photo in photos
            for _ in range(2)
        ]
    )
    with torch.inference_mode():
        features = F.normalize(pretrained.pooled_features(views), dim=1)
    assert features.isfinite().all()
    similarity = features @ features.T
    same = torch.arange(6) // 2 == torch.arange(6)[:, None] // 2
    different = similarity[~same]
    twins = similarity[torch.arange(0, 6, 2), torch.arange(1, 6, 2)]
    assert float(twins.min()) > float(different.max())


def test_pretrained_weights_are_not_those_of_a_resnet101(shared_data: Path) -> None:
    with pytest.raises(CheckpointError, match="not the weights of resnet101"):
        load_backbone_weights("resnet101", str(shared_data / "weights" / "resnet50-imagenet-v1.pth"))


def test_pooled_features_are_dropped_at_random_in_training_only() -> None:
    encoder = ImageEncoder(backbone="resnet18", embedding_dim=4, feature_dropout=0.25)
    seen: list[Tensor] = []
    encoder.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ones = torch.ones(50, 512)
    encoder.train()(ones)
    encoder.eval()(ones)
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert seen[0].max() == pytest.approx(1 / 0.75)
    assert seen[1].equal(ones)


def test_pooling_in_columns_keeps_the_side_on_which_something_is() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(backbone="resnet18", embedding_dim=4, pooling=(1, 2)).eval()
    left = random_images(1, 128)
    left[..., 64:] = 0
    with torch.inference_mode():
        features = encoder.pooled_features(left).unflatten(1, (512, 2))
        whole = ImageEncoder.pooled_features(with_weights_of(encoder), left)
    assert encoder.feature_dim == 1024
    assert encoder.head[0].weight.shape == (512, 1024)
    assert (features[..., 0] - features[..., 1]).abs().max() > 0.1
    torch.testing.assert_close(features.mean(2), whole)


def with_weights_of(encoder: ImageEncoder) -> ImageEncoder:
    """The same CNN, with one mean over the last map."""
    single = ImageEncoder(backbone="resnet18", embedding_dim=4).eval()
    single.backbone.load_state_dict(encoder.backbone.state_dict())
    return single


@pytest.mark.parametrize("backbone", ["resnet50-caffe", "vgg16", "mobilenet_v3_small"])
def test_pooling_in_cells_needs_a_resnet_of_torchvision(backbone: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=f"{backbone} keeps its own pooling; prepare with"):
        ImageEncoder(backbone=backbone, embedding_dim=4, pooling=(1, 2))
