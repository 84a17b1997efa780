"""Drawing why a photo fits a sentence: a heat map over the photo, and the words shaded by their shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.explaining import Explanation, Heat, Word
from dpce_cli.core.retrieval.lettering import Lettering
from dpce_cli.core.retrieval.sheet import FAINT, GAP, INK, MARGIN, PAPER
from dpce_cli.core.storage.files import replacing

WIDTH = 720
_RAISES, _LOWERS = (240, 120, 20), (70, 130, 220)
_WARM, _HOT = np.array((255, 225, 0)), np.array((215, 0, 40))
_STRENGTH = 0.7
_LINE = 66


def draw_explanation(path: Path, photo: Image.Image, explanation: Explanation, reporter: Reporter) -> None:
    """Draw the photo with its heat map, and the sentence below it.

    Args:
        photo: RGB, the one that was explained.

    Raises:
        WorkspaceError: `path` cannot be written.
    """
    scale = WIDTH / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    shown = photo.resize(size, Image.Resampling.LANCZOS)
    if explanation.heat:
        shown = draw_heat(shown, explanation.heat)
    lettering = Lettering([word.text for word in explanation.words], reporter)
    lines = _lines(explanation.words, lettering)
    height = MARGIN + shown.height + GAP + _LINE * len(lines) + 28 + MARGIN
    sheet = Image.new("RGB", (WIDTH + 2 * MARGIN, height), PAPER)
    sheet.paste(shown, (MARGIN + (WIDTH - shown.width) // 2, MARGIN))
    draw = ImageDraw.Draw(sheet)
    top = MARGIN + shown.height + GAP
    for line in lines:
        for word, text, left, width in line:
            box = (MARGIN + left, top, MARGIN + left + width, top + 36)
            if word.share is not None:
                draw.rounded_rectangle(box, 6, _shade(explanation.strength(word)))
            lettering.draw(draw, (box[0] + 8, top + 3), text, 22, FAINT if word.share is None else INK)
            lettering.draw(draw, (box[0] + 8, top + 38), _share(word), 14, FAINT)
        top += _LINE
    note = f"similarity {explanation.similarity:.3f}; below each word: how much lower it is without the word"
    lettering.draw(draw, (MARGIN, top + 4), note, 16, FAINT)
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")


def draw_heat(photo: Image.Image, heat: Heat) -> Image.Image:
    """The photo, paler where the heat is low, with warm colours where it is high; negative values are no heat."""
    left, top, right, bottom = (
        round(share * side) for share, side in zip(heat.part, (photo.width, photo.height) * 2, strict=True)
    )
    values = np.maximum(heat.values, 0) / max(float(heat.values.max()), 1e-9)
    blocks = Image.fromarray(values.astype(np.float32))
    smooth = blocks.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BICUBIC)
    whole = Image.new("F", photo.size)
    whole.paste(smooth, (left, top))
    warmth = np.clip(np.asarray(whole), 0, 1)[:, :, None]
    pale = np.asarray(Image.blend(photo.convert("L").convert("RGB"), photo, 0.4), np.float32)
    colour = _WARM * (1 - warmth) + _HOT * warmth
    return Image.fromarray((pale + _STRENGTH * warmth * (colour - pale)).astype(np.uint8))


def _lines(words: tuple[Word, ...], lettering: Lettering) -> list[list[tuple[Word, str, int, int]]]:
    """The words in lines no wider than `WIDTH`, each with what is written of it, its left edge and its width."""
    lines = list[list[tuple[Word, str, int, int]]]()
    left = WIDTH
    for word in words:
        text = " ".join(lettering.wrap(word.text, 22, WIDTH - 16, max_lines=1))
        width = 16 + round(max(lettering.width(text, 22), lettering.width(_share(word), 14)))
        if left + width > WIDTH:
            lines.append([])
            left = 0
        lines[-1].append((word, text, left, width))
        left += width + 8
    return lines


def _share(word: Word) -> str:
    if word.share is not None:
        return f"{word.share:+.3f}"
    return "not read" if word.is_known else "unknown"


def _shade(strength: float) -> tuple[int, ...]:
    """A colour between white and that of words that raise, or lower, the similarity; `strength` from -1 to 1."""
    colour = _RAISES if strength > 0 else _LOWERS
    return tuple(round(255 + abs(strength) * 0.75 * (channel - 255)) for channel in colour)
