"""The views of a photo for testing and training: crops, or the whole photo."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.config import ImageConfig
from dpce_cli.core.data.images import View, mirrored, plain_view, training_view, whole_view
from dpce_cli.core.seeding import generator_for


@dataclass(frozen=True)
class FixedViews:
    """The central crop of a photo, its mirror image if `config.mirror`, and `crops` random crops: (views, 3, h, w)."""

    config: ImageConfig
    crops: int = 0

    def __call__(self, image: Image.Image, position: int) -> Tensor:
        plain = plain_view(_shaped(self.config, image), resize=self.config.resize, crop=self.config.crop)
        views = [plain, mirrored(plain)] if self.config.mirror else [plain]
        return torch.stack([*views, *(random_crop(self.config, image, position, crop) for crop in range(self.crops))])


@dataclass(frozen=True)
class WholePhoto:
    """The photo at a short side of `config.resize`, and its mirror image if `config.mirror`: (views, 3, h, w)."""

    config: ImageConfig

    def __call__(self, image: Image.Image, position: int) -> Tensor:
        whole = whole_view(_shaped(self.config, image), resize=self.config.resize)
        return torch.stack([whole, mirrored(whole)] if self.config.mirror else [whole])


def views_in_testing(config: ImageConfig) -> View:
    """The views from which a photo is embedded, as `config.test_view` says; whole photos differ in size."""
    return WholePhoto(config) if config.test_view == "full" else FixedViews(config)


def seen_part(config: ImageConfig, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a photo of `size` (width, height) that `views_in_testing` shows: left, top, right, bottom.

    Fractions of the photo's width and height.

    >>> from dpce_cli.core.presets import build_preset
    >>> seen_part(build_preset("flickr8k").image, (512, 256))
    (0.25, 0.0, 0.75, 1.0)
    """
    short = min(size)
    if config.test_view == "full":
        sides = [1.0 if config.squash else min(1.0, 4 * short / side) for side in size]
    else:
        share = config.crop / config.resize
        sides = [share if config.squash else share * short / side for side in size]
    left, top = ((1 - side) / 2 for side in sides)
    return left, top, 1 - left, 1 - top


def random_crop(config: ImageConfig, image: Image.Image, *seed: int | str) -> Tensor:
    """A random training crop `(3, h, w)`; the same `seed` gives the same crop."""
    return training_view(
        _shaped(config, image),
        crop=config.crop,
        min_scale=config.min_crop_scale,
        flip=config.mirror,
        generator=generator_for(*seed),
    )


def _shaped(config: ImageConfig, image: Image.Image) -> Image.Image:
    """The image, scaled to a square if `config.squash`."""
    return image.resize((config.resize, config.resize), Image.Resampling.BICUBIC) if config.squash else image
