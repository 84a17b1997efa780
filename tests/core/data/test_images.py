from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.data.images import FORMATS, load_image, mirrored, normalize, plain_view, training_view, whole_view
from dpce_cli.core.errors import DataError


def stripes(width: int = 32, height: int = 24) -> Image.Image:
    """An image whose left half is red and whose right half is blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def pixel(path: Path, position: tuple[int, int] = (0, 0)) -> object:
    image = load_image(path)
    assert image.mode == "RGB"
    return image.getpixel(position)


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("L", 100, "png", (100, 100, 100)),
        ("1", 1, "png", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("RGBA", (255, 0, 0, 255), "png", (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), "png", (255, 255, 255)),
        ("LA", (0, 0), "png", (255, 255, 255)),
        ("LA", (0, 255), "png", (0, 0, 0)),
        ("I;16", 0x80FF, "png", (128, 128, 128)),
        ("I;16", 65535, "tif", (255, 255, 255)),
        ("I", 200, "tif", (200, 200, 200)),
        ("F", 1.0, "tif", (255, 255, 255)),
        ("F", 100.0, "tif", (100, 100, 100)),
        ("RGB", (1, 2, 3), "webp", None),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(
    tmp_path: Path, mode: str, colour: object, suffix: str, expected: tuple[int, int, int] | None
) -> None:
    image = Image.new(mode, (8, 8), colour)  # type: ignore[arg-type]
    assert pixel(saved(image, tmp_path / f"a.{suffix}")) == (expected or pytest.approx((1, 2, 3), abs=3))


def test_floats_outside_of_the_usual_ranges_are_scaled_and_nan_becomes_black(tmp_path: Path) -> None:
    values = np.array([[-5.0, 0.0], [5.0, np.nan]], dtype=np.float32)
    path = saved(Image.fromarray(values), tmp_path / "heights.tif")
    assert [pixel(path, (x, y)) for y in (0, 1) for x in (0, 1)] == [(g, g, g) for g in (0, 128, 255, 128)]


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 255, 0, 255, 0])
    image.putpixel((1, 0), 1)
    path = saved(image, tmp_path / "a.png", transparency=b"\x00\xff")
    assert (pixel(path), pixel(path, (1, 0))) == ((255, 255, 255), (0, 255, 0))


def test_half_transparent_black_is_grey(tmp_path: Path) -> None:
    assert pixel(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 127)), tmp_path / "a.png")) == (128, 128, 128)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(path) == (255, 0, 0)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    image = load_image(saved(stripes(), tmp_path / "a.png", exif=exif))
    assert image.size == (24, 32)
    assert (image.getpixel((0, 0)), image.getpixel((0, 31))) == ((255, 0, 0), (0, 0, 255))


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = saved(stripes(), tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert load_image(path).size == (32, 24)


@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_photos_of_phones_are_read(tmp_path: Path, suffix: str) -> None:
    if suffix.upper().replace("HEIC", "HEIF") not in FORMATS:
        pytest.skip(f"this Pillow reads no {suffix}")
    image = load_image(saved(Image.new("RGB", (64, 48), (200, 30, 30)), tmp_path / f"a.{suffix}"))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert np.allclose(np.asarray(image)[24, 32], (200, 30, 30), atol=8)


def test_a_large_jpeg_is_decoded_smaller_but_never_below_1024_pixels_a_side(tmp_path: Path) -> None:
    assert load_image(saved(Image.new("RGB", (4096, 2100)), tmp_path / "a.jpg")).size == (2048, 1050)
    assert load_image(saved(Image.new("RGB", (1500, 500)), tmp_path / "b.jpg")).size == (1500, 500)


def encoded(suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, suffix)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["jpeg", "png", "gif", "webp", "bmp", "tiff", "ppm"])
def test_a_truncated_image_is_a_data_error(tmp_path: Path, suffix: str) -> None:
    data = encoded(suffix)
    path = tmp_path / f"cut.{suffix}"
    for length in (1, 20, len(data) // 2):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=rf"cut\.{suffix}: .*; replace or remove the file"):
            load_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JPEG"),
        (b"<html>404 Not Found</html>", "not a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
    ],
)
def test_a_file_that_is_not_an_image_is_a_data_error(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jpg: {reason}.*; replace or remove"):
        load_image(tmp_path / "a.jpg")


def test_a_missing_image_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read \(No such file or directory\)"):
        load_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="Is a directory"):
        load_image(tmp_path)


def huge_png(path: Path, side: int) -> Path:
    """Write a black 1-bit PNG without having all pixels in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def test_a_400_megapixel_image_is_refused_without_being_decoded(tmp_path: Path) -> None:
    path = huge_png(tmp_path / "poster.png", 20_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        DataError,
        match=r"poster\.png: (too large|has \d+ x \d+ pixels).*; save a smaller copy",
    ):
        load_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_60_megapixel_image_loads_without_a_warning(tmp_path: Path) -> None:
    assert load_image(huge_png(tmp_path / "map.png", 7_700)).size == (7_700, 7_700)


def test_a_short_file_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 13000 13000 255\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"a\.ppm: has 13000 x 13000 pixels, more than 64 million; save a smaller copy"):
        load_image(tmp_path / "a.ppm")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_the_plain_view_is_the_centre_of_the_scaled_image() -> None:
    view = plain_view(stripes(400, 300), resize=256, crop=224)
    assert view.shape == (3, 224, 224)
    assert view.dtype == torch.uint8
    assert view[:, :, :100].float().mean((1, 2)).tolist() == [255, 0, 0]
    assert view[:, :, 124:].float().mean((1, 2)).tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 300), (256, 341)), ((300, 400), (341, 256)), ((100, 100), (256, 256)), ((30, 31), (265, 256))],
)
def test_the_whole_view_keeps_the_shape_and_has_the_short_side_asked_for(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert whole_view(stripes(*size), resize=256).shape == (3, *expected)


def test_the_whole_view_shows_the_image_from_edge_to_edge() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    assert whole_view(Image.fromarray(noise), resize=60).equal(torch.from_numpy(noise).permute(2, 0, 1))


def test_the_whole_view_of_an_extremely_long_image_is_its_middle() -> None:
    image = Image.new("RGB", (50_000, 10))
    image.paste("white", (24_970, 0, 25_030, 10))
    view = whole_view(image, resize=40)
    assert view.shape == (3, 40, 160)
    assert view.min() == 255
    assert whole_view(image.rotate(90, expand=True), resize=40).shape == (3, 160, 40)


def test_the_plain_view_agrees_with_resizing_first_and_cropping_then() -> None:
    ramp = np.add.outer(np.arange(300), np.arange(500)).astype(np.float64) * 255 / 800
    image = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    scaled = image.resize((round(500 * 64 / 300), 64), Image.Resampling.BICUBIC)
    left = (scaled.width - 56) // 2
    expected = np.asarray(scaled.crop((left, 4, left + 56, 60)), dtype=np.float64).transpose(2, 0, 1)
    assert np.abs(plain_view(image, resize=64, crop=56).numpy() - expected).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 50_000), (50_000, 1), (3, 2)])
def test_views_of_degenerate_shapes_have_the_size_asked_for(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    generator = torch.Generator().manual_seed(0)
    for view in (
        plain_view(image, resize=256, crop=224),
        training_view(image, crop=224, min_scale=0.8, flip=True, generator=generator),
    ):
        assert view.shape == (3, 224, 224)
        assert view.float().mean((1, 2)).tolist() == [255, 0, 0]


def random_view(image: Image.Image, seed: int, *, flip: bool = True, min_scale: float = 0.8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return training_view(image, crop=32, min_scale=min_scale, flip=flip, generator=generator)


def test_training_views_follow_their_generator_and_nothing_else() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    state = torch.get_rng_state()
    assert random_view(image, 5).equal(random_view(image, 5))
    assert not random_view(image, 5).equal(random_view(image, 6))
    assert torch.get_rng_state().equal(state)


def test_half_of_the_training_views_are_mirrored_and_the_mirror_changes_nothing_else() -> None:
    image = stripes(90, 60)
    same = [random_view(image, seed).equal(random_view(image, seed, flip=False)) for seed in range(200)]
    assert 70 < sum(same) < 130
    seed = same.index(False)
    assert random_view(image, seed).equal(mirrored(random_view(image, seed, flip=False)))


def test_training_views_show_at_least_min_scale_of_the_largest_box_and_reach_every_edge() -> None:
    size = 240
    ramp = np.broadcast_to(np.arange(size, dtype=np.uint8), (size, size))
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp], axis=2))
    views = [random_view(image, seed, flip=False).double() for seed in range(300)]
    widths = torch.stack([view[0, 0, -1] - view[0, 0, 0] for view in views]) / size
    heights = torch.stack([view[1, -1, 0] - view[1, 0, 0] for view in views]) / size
    slack = 0.05  # the outermost pixels are averages
    assert torch.maximum(widths, heights).min() > 0.8 - slack
    assert torch.minimum(widths, heights).min() > 0.8 * 3 / 4 - slack
    assert (widths / heights).min() > 3 / 4 - slack
    assert (widths / heights).max() < 4 / 3 + 2 * slack
    assert torch.maximum(widths, heights).max() > 1 - slack
    assert min(view[0].min() for view in views) < 8
    assert max(view[0].max() for view in views) > size - 8


def test_normalize_is_per_channel_and_channels_last() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    result = normalize(images, mean=mean, std=std)
    assert result.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(result[:, channel].double(), expected, rtol=1e-5, atol=1e-6)


def test_normalised_photos_can_be_used_for_training_after_inference() -> None:
    images = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.31), (0.4, 0.5, 0.61)
    with torch.inference_mode():
        inferred = normalize(images, mean=mean, std=std)
    pixels = normalize(images, mean=mean, std=std)
    expected = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(pixels, expected)
    torch.testing.assert_close(inferred.clone(), expected)
    weight = torch.ones((), requires_grad=True)
    (pixels * weight).sum().backward()
    torch.testing.assert_close(weight.grad, expected.sum())
