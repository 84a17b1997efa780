from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.explaining import Explanation, Heat, Word
from dpce_cli.core.retrieval.explanation_sheet import WIDTH, draw_explanation, draw_heat
from dpce_cli.core.retrieval.sheet import MARGIN, PAPER

GREY = (128, 128, 128)


def heat_at(row: int, column: int, part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> Heat:
    values = np.full((6, 6), -0.1, np.float32)
    values[row, column] = 0.2
    return Heat(values=values, part=part)


def explanation(words: dict[str, float | None], heat: Heat | None) -> Explanation:
    read = tuple(Word(text=text, share=share, is_known=True) for text, share in words.items())
    return Explanation(sentence=" ".join(words), similarity=0.4, words=read, heat=heat)


def warmth(image: Image.Image) -> NDArray[np.int16]:
    """Red minus blue per pixel."""
    pixels = np.asarray(image, np.int16)
    return np.asarray(pixels[..., 0] - pixels[..., 2])


def test_only_where_the_heat_is_the_photo_gets_warm() -> None:
    warm = warmth(draw_heat(Image.new("RGB", (120, 60), GREY), heat_at(1, 4)))
    row, column = np.unravel_index(int(warm.argmax()), warm.shape)
    assert (int(row) // 10, int(column) // 20) == (1, 4)
    assert warm[15, 90] > 80
    assert not warm[:, :50].any()


def test_heat_of_the_central_crop_stays_inside_of_it() -> None:
    warm = warmth(draw_heat(Image.new("RGB", (120, 60), GREY), heat_at(0, 0, (0.25, 0.0, 0.75, 1.0))))
    assert warm[3, 33] > 80
    assert not warm[:, :30].any()
    assert not warm[:, 90:].any()


def test_a_photo_of_which_nothing_speaks_for_the_sentence_gets_no_heat() -> None:
    cold = Heat(values=np.full((6, 6), -0.1, np.float32), part=(0.0, 0.0, 1.0, 1.0))
    assert not warmth(draw_heat(Image.new("RGB", (60, 60), GREY), cold)).any()


def test_words_are_shaded_by_their_shares(tmp_path: Path) -> None:
    words = {"blue": 0.2, "in": 0.1, "hailing": -0.2, "zebra": None}
    path = tmp_path / "why.png"
    draw_explanation(path, Image.new("RGB", (60, 30), GREY), explanation(words, None), Reporter())
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        below = sheet.convert("RGB").crop((0, MARGIN + WIDTH // 2 + 1, sheet.width, sheet.height))
    colours, counts = np.unique(np.asarray(below, np.int16).reshape(-1, 3), axis=0, return_counts=True)
    warm = (colours[:, 0] - colours[:, 2])[counts > 500]
    assert (warm > 40).sum() == 2  # a strong shade and a weak one
    assert (warm < -40).sum() == 1


@pytest.mark.parametrize("text", ["子犬が走る 🐶", "x" * 5_000, "", "two\nlines\x1b[31m", os.fsdecode(b"caf\xe9")])
def test_any_word_can_be_drawn_inside_the_margins(tmp_path: Path, text: str) -> None:
    path = tmp_path / "why.png"
    words: dict[str, float | None] = {f"{number} {text}": 0.1 * number for number in range(15)}
    draw_explanation(path, Image.new("RGB", (30, 60), GREY), explanation(words, heat_at(0, 0)), Reporter())
    with Image.open(path) as sheet:
        assert sheet.width == WIDTH + 2 * MARGIN
        margin = sheet.crop((sheet.width - MARGIN + 1, 0, sheet.width, sheet.height))
        assert margin.getcolors() == [((MARGIN - 1) * sheet.height, Image.new("RGB", (1, 1), PAPER).getpixel((0, 0)))]


def test_a_sheet_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "why.png").mkdir()
    with pytest.raises(WorkspaceError, match=r"why\.png: cannot be written"):
        draw_explanation(tmp_path / "why.png", Image.new("RGB", (8, 8)), explanation({"a": 0.1}, None), Reporter())
    assert os.listdir(tmp_path) == ["why.png"]
