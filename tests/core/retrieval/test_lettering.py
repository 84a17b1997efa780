from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import matplotlib
import pytest
from PIL import Image, ImageChops, ImageDraw

from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval import lettering
from dpce_cli.core.retrieval.lettering import Lettering

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


class Told(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def drawn(text: str, *, texts: tuple[str, ...] = ()) -> tuple[Image.Image, list[str]]:
    told = Told()
    letters = Lettering([text, *texts], told)
    image = Image.new("L", (400, 40), "white")
    letters.draw(ImageDraw.Draw(image), (5, 5), text, 20, "black")
    assert 0 < letters.width(text, 20) < 390
    return image, told.warnings


def same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose own fonts have mathematical signs and nothing else."""
    monkeypatch.setattr(lettering, "system_fonts", lambda: [FONTS / "STIXGeneral.ttf", FONTS / "missing.ttf"])


@pytest.mark.parametrize("text", ["Ein Café in Köln", "щенок бежит", "σκύλος", "كلب يجري", "გოგო"])
def test_letters_beyond_ascii_are_drawn_as_they_are(text: str) -> None:
    image, warnings = drawn(text)
    assert warnings == []
    squares, _ = drawn("".join(letter if letter.isascii() else "\N{WHITE SQUARE}" for letter in text))
    assert not same(image, squares)


def test_letters_that_no_font_has_are_squares_and_named_once() -> None:
    image, warnings = drawn("two 子犬", texts=("子犬が走る", "\N{DOG FACE}"))
    assert same(image, drawn("two \N{WHITE SQUARE}\N{WHITE SQUARE}")[0])
    (warning,) = warnings
    assert warning.startswith("no font of this machine has 6 of the letters (")
    assert "install a font that has them, such as fonts-noto-cjk and fonts-symbola" in warning


def test_a_font_of_the_machine_draws_what_the_others_lack() -> None:
    script = "\N{MATHEMATICAL SCRIPT SMALL A}"
    with patch.object(lettering, "system_fonts", return_value=[]):
        _, warnings = drawn(script)
    assert "install a font" in warnings[0]
    image, warnings = drawn(script)
    assert warnings == []
    assert not same(image, drawn("\N{WHITE SQUARE}")[0])


def test_one_text_may_need_several_fonts() -> None:
    script, georgian = "\N{MATHEMATICAL SCRIPT SMALL A}", "გ"
    image, warnings = drawn(f"{georgian}{script}")
    assert warnings == []
    assert not same(image, drawn(f"{georgian}\N{WHITE SQUARE}")[0])


def test_what_has_no_form_of_its_own_is_not_drawn() -> None:
    assert same(drawn("a\N{ZERO WIDTH JOINER}b\N{VARIATION SELECTOR-16}c")[0], drawn("abc")[0])
    assert same(drawn("a\udce9b")[0], drawn("a\N{REPLACEMENT CHARACTER}b")[0])


def test_an_accent_stays_with_its_letter_at_the_end_of_a_line() -> None:
    text = "e\N{COMBINING ACUTE ACCENT}" * 20
    for width in range(30, 60):
        lines = Lettering([text], Reporter()).wrap(text, 20, width, max_lines=99)
        assert "".join(lines) == text
        assert all(line.startswith("e") for line in lines)


def test_ascii_needs_no_search_for_fonts() -> None:
    with patch.object(lettering, "_fonts_with", side_effect=AssertionError):
        drawn("two dogs ...")
