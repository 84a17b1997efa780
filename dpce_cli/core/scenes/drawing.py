"""Draw street scenes, at `SUPERSAMPLING` times their size: sky, houses, trees and traffic, and the people in front."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from dpce_cli.core.scenes.canvas import GLASS, INK, PAINT, TYRE, Canvas, Colour
from dpce_cli.core.scenes.facts import Scene
from dpce_cli.core.scenes.people import draw_person

SUPERSAMPLING = 4
HORIZON = 54.0
KERB = 77.0
SKY: dict[str, tuple[Colour, Colour]] = {
    "sunny": ((92, 178, 246), (206, 236, 252)),
    "sunset": ((150, 78, 150), (255, 172, 84)),
    "night": ((12, 16, 52), (50, 60, 118)),
    "rain": ((96, 108, 124), (160, 172, 184)),
    "snow": ((196, 208, 222), (232, 238, 244)),
}
LIGHT: dict[str, tuple[Colour, float]] = {
    "sunny": ((255, 255, 255), 0.0),
    "sunset": ((250, 140, 60), 0.1),
    "night": ((12, 16, 52), 0.3),
    "rain": ((90, 104, 124), 0.15),
    "snow": ((255, 255, 255), 0.12),
}
"""The colour that is mixed into the background, and its share."""


def draw_scene(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """Draw an RGB picture of `size` by `size` pixels; `rng` varies positions, sizes and shades a little."""
    side = size * SUPERSAMPLING
    top, bottom = (np.array(colour, dtype=np.float32) for colour in SKY[scene.sky])
    height = np.clip(np.linspace(0, 100 / HORIZON, side, dtype=np.float32), 0, 1)[:, None, None]
    sky = (top * (1 - height) + bottom * height).astype(np.uint8)
    canvas = Canvas(Image.fromarray(np.broadcast_to(sky, (side, side, 3)).copy()), rng)
    _heaven(canvas, scene)
    _ground(canvas, scene)
    _background(canvas, scene)
    tint, amount = LIGHT[scene.sky]
    canvas = Canvas(Image.blend(canvas.image, Image.new("RGB", (side, side), tint), amount), rng)
    centre = {"left": 29.0, "": 50.0, "right": 71.0}[scene.vehicle_side] + rng.uniform(-2.5, 2.5)
    _vehicle(canvas, scene, centre, 1 if scene.vehicle_side != "right" else -1)
    edge = 27.0 if len(scene.people) == 1 else 22.0
    for person in scene.people:
        x = (edge if person.side == "left" else 100 - edge) + rng.uniform(-2.5, 2.5)
        draw_person(canvas, person, x, 94 + rng.uniform(-2, 2), 1 if person.side == "left" else -1)
    _weather(canvas, scene)
    return canvas.image.reduce(SUPERSAMPLING)


def _heaven(canvas: Canvas, scene: Scene) -> None:
    """Draw sun, moon, stars or clouds above the trees' side."""
    rng = canvas.rng
    x = (26 if scene.tree_side == "left" else 74) + rng.uniform(-14, 14)
    if scene.sky == "sunny":
        canvas.oval(x, 10, 6.5, 6.5, (255, 232, 84), None)
    elif scene.sky == "sunset":
        canvas.oval(x, 40, 11, 11, (255, 226, 120), None)
    elif scene.sky == "night":
        for _ in range(22):
            canvas.oval(rng.uniform(2, 98), rng.uniform(2, 40), 0.6, 0.6, (250, 250, 220), None)
        canvas.oval(x, 11, 6, 6, (255, 252, 225), None)
        canvas.oval(x + 3, 9.5, 5.2, 5.2, (18, 22, 60), None)
    cloud: dict[str, Colour] = {"sunny": (255, 255, 255), "rain": (70, 80, 96), "snow": (250, 252, 255)}
    if scene.sky in cloud:
        for _ in range(2 if scene.sky == "sunny" else 5):
            x, y = rng.uniform(5, 95), rng.uniform(4, 14)
            for dx, r in ((-5.0, 3.4), (0.0, 4.8), (5.0, 3.6)):
                canvas.oval(x + dx, y, r * 1.4, r * 0.8, cloud[scene.sky], None)


def _ground(canvas: Canvas, scene: Scene) -> None:
    """Draw hills, the far pavement, the road and the near pavement."""
    snow = scene.sky == "snow"
    hill: Colour = (226, 234, 240) if snow else (122, 176, 110)
    for x in (10, 50, 90):
        canvas.oval(
            x + canvas.rng.uniform(-8, 8),
            HORIZON + 2,
            30,
            canvas.rng.uniform(9, 14),
            canvas.shade(hill),
            None,
        )
    pavement: Colour = (236, 240, 246) if snow else (206, 198, 186)
    canvas.box(-1, HORIZON, 101, HORIZON + 4, canvas.shade(pavement), None)
    canvas.box(-1, HORIZON + 3.4, 101, KERB, canvas.shade((112, 114, 124)), None)
    for x in range(-4, 104, 16):
        canvas.box(x, 66, x + 8, 67.2, (236, 232, 210), None)
    canvas.box(-1, KERB, 101, 101, canvas.shade(pavement), None)
    canvas.box(-1, KERB, 101, KERB + 1.4, (150, 144, 138), None)
    for x in range(-10, 130, 20):
        canvas.line([(x + 4, KERB + 1.4), (x - 6, 101)], 0.4, (172, 166, 158))


def _background(canvas: Canvas, scene: Scene) -> None:
    """Draw houses on one side of the picture and trees on the other."""
    rng = canvas.rng
    middle = {"left": 26.0, "right": 74.0}
    width = 30.0 if scene.houses == 1 else 22.0
    for index in range(scene.houses):
        x = middle[scene.house_side] + (index - (scene.houses - 1) / 2) * 24 + rng.uniform(-1, 1)
        _house(canvas, x, width, scene)
    for index in range(scene.trees):
        x = middle[scene.tree_side] + (index - (scene.trees - 1) / 2) * 16 + rng.uniform(-1.5, 1.5)
        _tree(canvas, x, rng.uniform(0.92, 1.08), scene.sky)


def _house(canvas: Canvas, x: float, width: float, scene: Scene) -> None:
    base, eaves = HORIZON + 1, HORIZON - 25 + canvas.rng.uniform(-1.5, 1.5)
    half = width / 2
    canvas.box(x - half, eaves, x + half, base, canvas.shade(PAINT[scene.house_colour]))
    roof: Colour = (250, 252, 255) if scene.sky == "snow" else (120, 76, 66)
    canvas.shape([(x - half - 2, eaves), (x, eaves - 13), (x + half + 2, eaves)], canvas.shade(roof))
    glass: Colour = (255, 236, 130) if scene.sky == "night" else GLASS
    for dx in (-half * 0.52, half * 0.52):
        canvas.box(x + dx - 2.6, eaves + 4, x + dx + 2.6, eaves + 10, glass)
        canvas.line([(x + dx, eaves + 4), (x + dx, eaves + 10)], 0.5, INK)
    canvas.box(x - 2.8, base - 11, x + 2.8, base, (108, 66, 44))
    canvas.oval(x + 1.5, base - 5, 0.5, 0.5, (250, 220, 120), None)


def _tree(canvas: Canvas, x: float, scale: float, sky: str) -> None:
    base = HORIZON + 1
    canvas.box(x - 1.5, base - 14, x + 1.5, base, (112, 74, 44))
    leaves = canvas.shade((66, 146, 66), 14)
    canvas.oval(x, base - 23 * scale, 7.2 * scale, 12 * scale, leaves)
    lit: Colour = (248, 250, 254) if sky == "snow" else canvas.shade((108, 182, 92))
    canvas.oval(x - 1.5, base - 28 * scale, 3.6 * scale, 5 * scale, lit, None)


def _vehicle(canvas: Canvas, scene: Scene, x: float, facing: int) -> None:
    base = 73 + canvas.rng.uniform(-1, 1)
    paint = canvas.shade(PAINT[scene.vehicle_colour or "white"])
    if scene.vehicle == "bus":
        canvas.box(x - 22, base - 26, x + 22, base - 2, paint, r=2.5)
        for dx in range(-19, 20, 8):
            canvas.box(x + dx, base - 22, x + dx + 6, base - 14, GLASS, r=0.8)
        canvas.box(x - 22, base - 10, x + 22, base - 8.4, (250, 250, 250), None)
    elif scene.vehicle:
        roof = [(-12.0, -9.5), (-7.5, -17.0), (6.5, -17.0), (13.0, -9.5)]
        canvas.shape([(x + facing * dx, base + dy) for dx, dy in roof], paint)
        for pane in (
            [(-9.5, -10), (-6.5, -15.4), (-1.2, -15.4), (-1.2, -10)],
            [(0.8, -10), (0.8, -15.4), (5.8, -15.4), (10.2, -10)],
        ):
            canvas.shape([(x + facing * dx, base + dy) for dx, dy in pane], GLASS)
        canvas.box(x - 19, base - 10.5, x + 19, base - 2, paint, r=3)
        canvas.oval(x + facing * 17.4, base - 7.4, 1.3, 1.3, (255, 246, 180))
        if scene.vehicle == "taxi":
            for square in range(-8, 8):
                y = base - 7.2 + (square % 2) * 1.6
                canvas.box(x + square * 1.9, y, x + square * 1.9 + 1.9, y + 1.6, INK, None)
            canvas.box(x - 4.5, base - 20.6, x + 4.5, base - 17, (255, 255, 255), r=0.8)
            canvas.box(x - 2.6, base - 19.4, x + 2.6, base - 18.4, INK, None)
    for dx in (-12, 12) if scene.vehicle else ():
        canvas.oval(x + dx, base - 2.5, 4, 4, TYRE)
        canvas.oval(x + dx, base - 2.5, 1.7, 1.7, (200, 200, 206), None)


def _weather(canvas: Canvas, scene: Scene) -> None:
    rng = canvas.rng
    if scene.sky == "rain":
        for _ in range(46):
            x, y = rng.uniform(0, 104), rng.uniform(-4, 98)
            canvas.line([(x, y), (x - 1.6, y + 5)], 0.5, (190, 212, 236))
    elif scene.sky == "snow":
        for _ in range(46):
            canvas.oval(rng.uniform(0, 100), rng.uniform(0, 100), 0.9, 0.9, (255, 255, 255), None)
