"""Decode image files, and make the uint8 views that the image encoder takes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dpce_cli.core.data.shards import Extent, open_photo
from dpce_cli.core.errors import DataError

View = Callable[[Image.Image, int], Tensor]
"""Takes an image and its position in the list of images, and makes a uint8 tensor (3, height, width)."""

with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"),
    *(name for name in ("AVIF", "HEIF") if name in Image.registered_extensions().values()),
)
"""No other formats are opened: for some, Pillow runs external programs. HEIF needs the library pillow-heif."""

MOST_PIXELS = 64_000_000
"""A photo with more pixels is not decoded. One of this size takes 0.5 GB of memory, or 0.8 GB with 16-bit or float
pixels; a view needs less than a hundredth of them."""

ENOUGH_PIXELS = 1024
"""A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if each side keeps this many pixels."""


def load_image(path: Path, extent: Extent | None = None) -> Image.Image:
    """Decode an image file, or its first frame, to RGB as a person would see it.

    The path of a member of a tar is the tar's path and the member's name; the member is read at `extent`, if given.

    EXIF orientation is applied, transparent pixels are put on white, and grey values of 16 bits, integers or floats are
    scaled to 8 bits. JPEGs much larger than `ENOUGH_PIXELS` are decoded at a smaller size.

    Raises:
        DataError: the file is missing, damaged, has none of the `FORMATS`, or has more than `MOST_PIXELS` (a JPEG: at
            the size at which it is decoded).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_photo(path, extent) as file, Image.open(file, formats=FORMATS) as image:
                image.draft(None, (ENOUGH_PIXELS, ENOUGH_PIXELS))
                if image.width * image.height > MOST_PIXELS:
                    raise DataError(
                        f"{path}: has {image.width} x {image.height} pixels, more than {MOST_PIXELS // 10**6} million; "
                        "save a smaller copy in its place"
                    )
                image.load()
                with suppress(Exception):  # the pixels are good even if the EXIF data are damaged
                    ImageOps.exif_transpose(image, in_place=True)
                return _as_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large to decode ({error}); save a smaller copy in its place") from error
    except UnidentifiedImageError as error:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise DataError(f"{path}: not a {formats} image; replace or remove the file") from error
    except Exception as error:  # Pillow's decoders raise nearly every built-in exception on damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); replace or remove the file") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_to_8_bit(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(layer, mask=layer)
        return canvas
    return image.convert("RGB")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    values = np.array(image, dtype=np.float32)  # changed in place, to save memory
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, next(ceiling for ceiling in (1.0, 255.0, 65535.0) if high <= ceiling)
    gain = 255 / (high - low or 1.0)
    values *= gain
    values -= low * gain
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def plain_view(image: Image.Image, *, resize: int, crop: int) -> Tensor:
    """The central `crop` x `crop` pixels of the image, scaled (bicubic) to a short side of `resize`.

    Returns a uint8 tensor (3, crop, crop); `crop` must not exceed `resize`. Only the part in the crop is scaled, so an
    extremely long image takes no more time than a square one.
    """
    side = min(image.size) * crop / resize
    return _scaled(image, crop, ((image.width - side) / 2, (image.height - side) / 2, side, side))


def whole_view(image: Image.Image, *, resize: int) -> Tensor:
    """The whole image, scaled (bicubic) to a short side of `resize`: a uint8 tensor (3, height, width).

    An image more than four times as long as wide is cut to its middle, because the cost grows with the length.
    """
    short = min(image.size)
    width, height = (min(side, 4 * short) for side in image.size)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    size = round(width * resize / short), round(height * resize / short)
    pixels = np.array(image.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def training_view(image: Image.Image, *, crop: int, min_scale: float, flip: bool, generator: torch.Generator) -> Tensor:
    """A random part of the image as a uint8 tensor (3, crop, crop); with `flip`, half of the parts are mirrored.

    The aspect ratio of the part is drawn log-uniformly between 3/4 and 4/3. The largest box of this ratio in the image
    is scaled by a factor between `min_scale` and 1, and put at a random position. Zheng et al. 2020 and the released
    code have `min_scale` 0.8 and `crop` 224. They first scale the image to a short side of 256; this is left out here,
    because it does not change the part. `generator` always draws five numbers.
    """
    scale, shape, x, y, coin = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    aspect = (4 / 3) ** (2 * shape - 1)
    width = min(image.width, image.height * aspect) * (min_scale + (1 - min_scale) * scale)
    height = width / aspect
    view = _scaled(image, crop, (x * (image.width - width), y * (image.height - height), width, height))
    return mirrored(view) if flip and coin < 0.5 else view


def _scaled(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Tensor:
    """The box (left, top, width, height) of the image as (3, size, size), without anything outside of the image."""
    left, top, width, height = box
    corners = (max(left, 0), max(top, 0), min(left + width, image.width), min(top + height, image.height))
    pixels = np.array(image.resize((size, size), Image.Resampling.BICUBIC, corners))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def mirrored(images: Tensor) -> Tensor:
    """Images (..., height, width) with left and right exchanged."""
    return images.flip(-1)


def normalize(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(images / 255 - mean) / std` per channel: uint8 (batch, 3, h, w) to float32, channels_last."""
    shift, scale = _constants(tuple(mean), tuple(std), images.device)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255).sub_(shift).div_(scale)


@functools.lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept on the device: a copy for every batch would let the host wait for the GPU."""
    with torch.inference_mode(False):
        return torch.tensor([mean, std], device=device).view(2, 3, 1, 1)
