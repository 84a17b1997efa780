from __future__ import annotations

import torch
from PIL import Image

from dpce_cli.core.config import ImageConfig
from dpce_cli.core.data.views import FixedViews, random_crop, views_in_testing
from dpce_cli.core.presets import build_preset


def config(*settings: str) -> ImageConfig:
    settings = ("image.resize=40", "image.crop=32", "image.mirror=true", *settings)
    return build_preset("scenes").with_settings(list(settings)).image


def rings() -> Image.Image:
    """A tall image; its upper third and its lower third are white."""
    image = Image.new("RGB", (40, 120), "white")
    image.paste("black", (0, 40, 40, 80))
    return image


def test_a_squashed_image_is_seen_from_top_to_bottom() -> None:
    plain, mirror = FixedViews(config("image.squash=true"))(rings(), 0)
    assert plain.equal(mirror.flip(-1))
    assert plain[:, 2].min() > 250
    assert plain[:, -3].min() > 250
    assert plain[:, 16].max() < 5
    assert FixedViews(config())(rings(), 0)[0].max() < 5


def test_training_crops_of_a_squashed_image_are_squashed_too() -> None:
    crops = [random_crop(config("image.squash=true"), rings(), seed) for seed in range(20)]
    shares = [float((crop[0] > 128).float().mean()) for crop in crops]
    assert all(0.5 < share < 0.75 for share in shares)
    shares = [float((random_crop(config(), rings(), seed)[0] > 128).float().mean()) for seed in range(20)]
    assert min(shares) < 0.1


def test_in_testing_the_configuration_decides_between_the_crop_and_the_whole_photo() -> None:
    assert views_in_testing(config("image.test_view=crop"))(rings(), 0).equal(FixedViews(config())(rings(), 0))
    plain, mirror = views_in_testing(config("image.test_view=full"))(rings(), 0)
    assert plain.shape == (3, 120, 40)
    assert plain.equal(mirror.flip(-1))
    assert views_in_testing(config("image.test_view=full", "image.mirror=false"))(rings(), 0).shape == (1, 3, 120, 40)


def test_a_squashed_photo_is_whole_as_a_square() -> None:
    plain, _ = views_in_testing(config("image.test_view=full", "image.squash=true"))(rings(), 0)
    assert plain.shape == (3, 40, 40)
    assert plain[:, 2].min() > 250
    assert plain[:, 20].max() < 5


def test_squashing_changes_nothing_about_a_square_image_of_the_size() -> None:
    noise = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
    image = Image.fromarray(noise)
    assert FixedViews(config("image.squash=true"))(image, 0).equal(FixedViews(config())(image, 0))
