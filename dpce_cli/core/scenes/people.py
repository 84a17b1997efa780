"""Draw the people of the street scenes, and what they carry, push, ride or lead."""

from __future__ import annotations

from collections.abc import Callable

from dpce_cli.core.scenes.canvas import INK, PAINT, TYRE, Canvas, Colour, Point
from dpce_cli.core.scenes.facts import Person

At = Callable[[float, float], Point]
"""Maps distances forwards and upwards, in shares of the person's height, to a point of the canvas."""

HAIR: dict[str, Colour] = {
    "blonde": (250, 220, 92),
    "brown": (118, 70, 34),
    "black": (30, 28, 36),
    "red": (222, 86, 24),
    "grey": (178, 180, 188),
}
SKINS: tuple[Colour, ...] = ((250, 214, 184), (240, 196, 160), (218, 168, 128), (178, 124, 88))


def draw_person(canvas: Canvas, person: Person, x: float, ground: float, facing: int) -> None:
    """Draw a person whose feet are at (x, ground), and what the person carries, pushes, rides or leads."""
    rng = canvas.rng
    tall = (36 if person.is_child else 50) * rng.uniform(0.95, 1.05)
    head = 7.6 if person.is_child else 8.8
    skin = canvas.shade(rng.choice(SKINS), 6)
    cloth = canvas.shade(PAINT[person.clothes])
    hair = canvas.shade(HAIR[person.hair], 6)
    item = canvas.shade(PAINT[person.item]) if person.item else INK
    female = person.kind in ("woman", "girl")

    def at(dx: float, dy: float) -> Point:
        """The point `dx` forwards and `dy` upwards, in shares of the person's height."""
        return x + facing * dx * tall, ground - dy * tall

    neck = 1 - 2 * head / tall
    hand = {
        "hail": (0.30, 1.06),
        "dog": (0.26, 0.36),
        "umbrella": (0.20, neck - 0.08),
        "bag": (0.22, 0.30),
        "bicycle": (0.30, 0.50),
        "stroller": (0.30, 0.40),
        "bus stop": (0.17, 0.32),
        "balloon": (0.26, neck - 0.04),
    }[person.action]
    if person.action == "bicycle":
        _bicycle(canvas, at, tall)
        hips, feet = (-0.10, 0.40), ((0.06, 0.12), (0.00, 0.20))
    else:
        hips, feet = (0.0, 0.36), ((-0.08, 0.0), (0.08, 0.0))
    if person.action == "bus stop":
        _bus_stop(canvas, at)
    trousers: Colour = skin if female else (70, 72, 92)
    for foot in feet:
        canvas.limb([at(hips[0] + foot[0] * 0.6, hips[1]), at(*foot)], 3.0, trousers)
        canvas.oval(*at(foot[0] + 0.03, foot[1]), 2.6, 1.5, INK, None)
    if female:
        canvas.oval(*at(-0.02, 1 - head / tall - 0.08), head * 1.3, head * 1.7, hair)
    shoulder, hem = (0.12, 0.21) if female else (0.155, 0.15)
    low = hips[1] - (0.14 if female else 0.02)
    rear_hand = at(0.2, 0.5) if person.action == "bicycle" else at(-0.2, 0.40)
    canvas.limb([at(-shoulder * 0.8, neck - 0.04), rear_hand], 3.4, cloth)
    torso = [at(-shoulder, neck), at(shoulder, neck), at(hips[0] + hem, low), at(hips[0] - hem, low)]
    canvas.shape(torso, cloth)
    _head(canvas, person, at(0, 1 - head / tall), head, facing, skin, hair)
    _item(canvas, person, at(*hand), at(0, 1.03)[1], ground, facing, item)
    canvas.limb([at(shoulder * 0.75, neck - 0.05), at(*hand)], 3.4, cloth)
    canvas.oval(*at(*hand), 2.0, 2.0, skin)


def _head(canvas: Canvas, person: Person, centre: Point, r: float, facing: int, skin: Colour, hair: Colour) -> None:
    x, y = centre
    if person.kind == "girl":
        for side in (-1, 1):
            canvas.oval(x + side * r * 1.05, y + r * 0.35, r * 0.42, r * 0.75, hair)
    canvas.oval(x, y, r * 0.92, r, skin)
    start, end = (170, 360) if facing > 0 else (180, 370)
    canvas.slice(x, y - r * 0.1, r * 1.2, start, end, hair)
    down = 0.95 if person.kind == "woman" else 0.5
    canvas.oval(x - facing * r * 0.8, y - r * 0.1 + r * down * 0.4, r * 0.4, r * down, hair)
    for dx in (0.12, 0.58):
        canvas.oval(x + facing * r * dx, y + r * 0.22, 0.75, 0.95, INK, None)
    smile = [(0.10, 0.52), (0.24, 0.66), (0.46, 0.66), (0.60, 0.52)]
    canvas.line([(x + facing * r * dx, y + r * dy) for dx, dy in smile], 0.6, (176, 60, 60))


def _item(canvas: Canvas, person: Person, hand: Point, top: float, ground: float, facing: int, colour: Colour) -> None:
    """Draw what the front hand holds."""
    x, y = hand
    if person.action == "umbrella":
        canvas.line([(x, y + 3), (x, top - 17)], 1.0, INK)
        canvas.slice(x, top, 15, 180, 360, colour)
    elif person.action == "bag":
        canvas.line([(x - 2.4, y + 4), (x, y), (x + 2.4, y + 4)], 0.8, INK)
        canvas.box(x - 5, y + 3.5, x + 5, y + 13.5, colour, r=1)
    elif person.action == "balloon":
        centre = x + canvas.rng.uniform(-1, 1), y - 21
        canvas.line([(x, y), (centre[0], centre[1] + 7)], 0.5, INK)
        canvas.oval(*centre, 6.8, 8, colour)
        canvas.oval(centre[0] - 2, centre[1] - 3, 1.2, 1.8, (255, 255, 255), None)
    elif person.action == "dog":
        _dog(canvas, x + facing * 9, ground, facing, colour, hand)
    elif person.action == "stroller":
        _stroller(canvas, x + facing * 9, ground, facing, hand)


def _dog(canvas: Canvas, x: float, ground: float, facing: int, fur: Colour, hand: Point) -> None:
    canvas.line([hand, (x + facing * 4, ground - 10)], 0.6, INK)
    for dx in (-4.5, -2.5, 2.5, 4.5):
        canvas.limb([(x + dx, ground - 5), (x + dx, ground)], 1.3, fur)
    canvas.limb([(x - facing * 6, ground - 9), (x - facing * 8.5, ground - 13)], 1.2, fur)
    canvas.oval(x, ground - 7.5, 7, 3.8, fur)
    canvas.oval(x + facing * 7, ground - 11.5, 3.8, 3.4, fur)
    canvas.oval(x + facing * 5, ground - 12, 1.3, 2.6, fur)
    canvas.oval(x + facing * 8, ground - 12.2, 0.6, 0.6, (255, 255, 255), INK)
    canvas.oval(x + facing * 10.6, ground - 11, 0.8, 0.8, INK, None)


def _stroller(canvas: Canvas, x: float, ground: float, facing: int, hand: Point) -> None:
    body: Colour = (90, 190, 190)
    canvas.line([hand, (x - facing * 6, ground - 13), (x + facing * 2, ground - 4)], 1.1, INK)
    canvas.slice(x, ground - 13, 8.5, 0, 180, body)
    start = 270 if facing > 0 else 180
    canvas.slice(x, ground - 13, 8.5, start, start + 90, (60, 150, 156))
    for dx in (-4.5, 5):
        canvas.oval(x + dx, ground - 2, 2.6, 2.6, TYRE)
        canvas.oval(x + dx, ground - 2, 1.0, 1.0, (220, 220, 224), None)


def _bicycle(canvas: Canvas, at: At, tall: float) -> None:
    r = 0.17
    frame: Colour = (60, 62, 74)
    for dx in (-0.27, 0.27):
        x, y = at(dx, r)
        canvas.oval(x, y, r * tall, r * tall, TYRE, None)
        canvas.oval(x, y, r * tall - 1.6, r * tall - 1.6, (214, 216, 220), None)
        canvas.oval(x, y, 0.9, 0.9, INK, None)
    for start, end in (
        ((-0.27, r), (-0.1, 0.40)),
        ((-0.27, r), (0.02, r)),
        ((0.02, r), (-0.1, 0.40)),
        ((0.02, r), (0.24, 0.40)),
        ((-0.1, 0.38), (0.24, 0.40)),
        ((0.27, r), (0.24, 0.5)),
        ((0.24, 0.5), (0.32, 0.51)),
    ):
        canvas.line([at(*start), at(*end)], 1.3, frame)


def _bus_stop(canvas: Canvas, at: At) -> None:
    x, ground = at(0.34, 0)
    canvas.line([(x, ground), (x, ground - 44)], 1.6, INK)
    canvas.box(x - 6, ground - 52, x + 6, ground - 38, (30, 110, 190), r=1.5)
    canvas.box(x - 4, ground - 49.5, x + 4, ground - 42.5, (250, 250, 250), None, r=1)
    canvas.box(x - 3, ground - 48, x + 3, ground - 45.5, (30, 110, 190), None)
    for dx in (-2, 2):
        canvas.oval(x + dx, ground - 42, 0.9, 0.9, (250, 250, 250), None)
