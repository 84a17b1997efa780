"""Cartoon shapes in a square of 100 by 100 units, and their colours."""

from __future__ import annotations

import random
from collections.abc import Iterable

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (48, 42, 56)
TYRE: Colour = (38, 38, 44)
GLASS: Colour = (186, 222, 238)

PAINT: dict[str, Colour] = {
    "blue": (44, 98, 214),
    "red": (214, 40, 40),
    "green": (40, 150, 66),
    "yellow": (250, 208, 30),
    "purple": (134, 58, 178),
    "white": (246, 246, 244),
    "orange": (246, 134, 26),
    "pink": (250, 140, 186),
    "black": (44, 44, 50),
    "brown": (132, 82, 44),
}


class Canvas:
    """Draws shapes with a dark outline; the unit of lengths is 1/100 of the picture's side."""

    def __init__(self, image: Image.Image, rng: random.Random) -> None:
        self.image = image
        self.rng = rng
        self.unit = image.width / 100
        self.draw = ImageDraw.Draw(image)

    def shade(self, colour: Colour, spread: int = 10) -> Colour:
        """The colour, made a little lighter or darker at random."""
        shift = self.rng.randint(-spread, spread)
        red, green, blue = (min(255, max(0, channel + shift)) for channel in colour)
        return red, green, blue

    def line(self, points: Iterable[Point], width: float, colour: Colour) -> None:
        """Draw a line with round ends."""
        pixels = [(x * self.unit, y * self.unit) for x, y in points]
        self.draw.line(pixels, colour, max(1, round(width * self.unit)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            radius = width * self.unit / 2
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)

    def limb(self, points: list[Point], width: float, colour: Colour) -> None:
        self.line(points, width + 1.2, INK)
        self.line(points, width, colour)

    def shape(self, points: list[Point], colour: Colour, outline: Colour | None = INK) -> None:
        self.draw.polygon([(x * self.unit, y * self.unit) for x, y in points], colour)
        if outline is not None:
            self.line([*points, points[0]], 0.6, outline)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, outline: Colour | None = INK) -> None:
        box = [(x - rx) * self.unit, (y - ry) * self.unit, (x + rx) * self.unit, (y + ry) * self.unit]
        self.draw.ellipse(box, colour, outline, max(1, round(0.6 * self.unit)))

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        colour: Colour,
        outline: Colour | None = INK,
        r: float = 0,
    ) -> None:
        box = [x0 * self.unit, y0 * self.unit, x1 * self.unit, y1 * self.unit]
        self.draw.rounded_rectangle(box, r * self.unit, colour, outline, max(1, round(0.6 * self.unit)))

    def slice(self, x: float, y: float, r: float, start: float, end: float, colour: Colour) -> None:
        box = [(x - r) * self.unit, (y - r) * self.unit, (x + r) * self.unit, (y + r) * self.unit]
        self.draw.pieslice(box, start, end, colour, INK, max(1, round(0.6 * self.unit)))
