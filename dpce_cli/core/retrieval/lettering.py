"""Text on pictures, in fonts that have its letters."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from PIL import ImageDraw, ImageFont

from dpce_cli.core.progress import Reporter

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_UNKNOWN = "\N{WHITE SQUARE}"
"""Drawn in place of a letter that no font has."""
_PLAIN_STYLES = ("Regular", "Book", "Roman", "Normal")


def system_fonts() -> list[Path]:
    """All font files of this machine."""
    from matplotlib.font_manager import findSystemFonts

    return [Path(path) for path in findSystemFonts()]


class Lettering:
    """Measures and draws text. ASCII is drawn in Pillow's own font, other text in the fonts that this machine has.

    A text is drawn in one font if one has all of its letters, because only then are scripts that run from right to left
    put in order. Letters that no font has are drawn as squares; one warning names them.

    Args:
        texts: all that is to be drawn.
    """

    def __init__(self, texts: Iterable[str], reporter: Reporter) -> None:
        letters = {letter for text in texts for letter in _drawable(text)}
        self._letters_of: dict[Path, set[str]] = {}
        self._fonts: dict[tuple[Path | None, int], Font] = {}
        self._missing = set[str]()
        if all(letter.isascii() for letter in letters):
            return
        self._letters_of = _fonts_with(letters | {_UNKNOWN} | set(map(chr, range(32, 127))))
        missing = self._missing = letters.difference(*self._letters_of.values())
        if missing:
            examples = " ".join(sorted(missing)[:10])
            packages = " and ".join(sorted({_package(letter) for letter in missing}))
            reporter.warn(
                f"no font of this machine has {len(missing)} of the letters ({examples}), which are drawn as squares; "
                f"install a font that has them, such as {packages} (Debian's and Ubuntu's names)"
            )

    def width(self, text: str, size: int) -> float:
        """Pixels that a line of text takes."""
        return sum(font.getlength(run) for run, font in self._runs(text, size))

    def draw(self, draw: ImageDraw.ImageDraw, position: tuple[float, float], text: str, size: int, colour: str) -> None:
        """Draw a line of text below and to the right of `position`."""
        left, top = position
        for run, font in self._runs(text, size):
            draw.text((left, top + size), run, colour, font, anchor="ls")
            left += font.getlength(run)

    def wrap(self, text: str, size: int, width: int, *, max_lines: int) -> list[str]:
        """Lines no wider than `width` pixels, the last one shortened if there are more than `max_lines`."""
        rest = " ".join(_drawable(text).split())
        lines: list[str] = []
        while rest and len(lines) < max_lines:
            end = 1
            while end < len(rest) and self.width(rest[: end + 1], size) <= width:
                end += 1
            if end < len(rest) and (space := rest.rfind(" ", 0, end + 1)) > 0:
                end = space
            while 1 < end < len(rest) and unicodedata.category(rest[end]).startswith(
                "M"
            ):  # an accent stays with its letter
                end -= 1
            lines.append(rest[:end])
            rest = rest[end:].lstrip()
        if rest:
            while self.width(f"{lines[-1]}...", size) > width:
                lines[-1] = lines[-1][:-1]
            lines[-1] = f"{lines[-1].rstrip()}..."
        return lines

    def _runs(self, text: str, size: int) -> list[tuple[str, Font]]:
        """Successive parts of a text, each with the font that it is drawn in."""
        text = "".join(_UNKNOWN if letter in self._missing else letter for letter in _drawable(text))
        if text.isascii() or self._font_file(text):
            return [(text, self._font(self._font_file(text), size))]
        parts = itertools.groupby(text, self._font_file)
        return [("".join(letters), self._font(path, size)) for path, letters in parts]

    def _font_file(self, text: str) -> Path | None:
        """The first font that has all letters of a text; None: Pillow's own font has them, or no font has."""
        if text.isascii():
            return None
        return next((path for path, letters in self._letters_of.items() if letters.issuperset(text)), None)

    def _font(self, path: Path | None, size: int) -> Font:
        if (path, size) not in self._fonts:
            self._fonts[path, size] = ImageFont.truetype(path, size) if path else ImageFont.load_default(size)
        return self._fonts[path, size]


def _drawable(text: str) -> str:
    """Text without invisible characters. Control characters become blanks; undecodable bytes become a sign."""
    kinds = ((letter, unicodedata.category(letter)) for letter in text)
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if kind == "Cs" else letter if letter.isprintable() else " "
        for letter, kind in kinds
        if kind != "Cf" and not unicodedata.name(letter, "").startswith("VARIATION SELECTOR")
    )


def _fonts_with(letters: set[str]) -> dict[Path, set[str]]:
    """Few fonts that together have all letters which any font has, best first, each with its part of `letters`."""
    import matplotlib

    bundled = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    chosen = {bundled: _coverage(bundled, letters)[0]}
    missing = letters - chosen[bundled]
    others: dict[Path, tuple[set[str], bool]] = {}
    if missing:
        for path in sorted(system_fonts()):
            others[path] = _coverage(path, letters)
    while others:
        # The font with the most missing letters comes next; of equal ones, an upright one without serifs.
        best = max(others, key=lambda path: (len(others[path][0] & missing), others[path][1]))
        if not others[best][0] & missing:
            break
        chosen[best] = others.pop(best)[0]
        missing -= chosen[best]
    return chosen


def _coverage(path: Path, letters: set[str]) -> tuple[set[str], bool]:
    """Those of `letters` that a font file has, and whether it is an upright, regular font without serifs."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        has = {letter for letter in letters if font.get_char_index(ord(letter))}
        if has:
            ImageFont.truetype(path, 16)  # refuses fonts of fixed sizes, as of coloured emoji
        return has, "Sans" in font.family_name and font.style_name in _PLAIN_STYLES
    except Exception:  # both libraries raise nearly anything on files that they cannot read
        return set(), False


def _package(letter: str) -> str:
    if unicodedata.name(letter, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "FULLWIDTH")):
        return "fonts-noto-cjk"
    return "fonts-symbola" if unicodedata.category(letter) == "So" else "fonts-noto-core"
