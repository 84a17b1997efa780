#!/usr/bin/env python3
"""Whether `dpce explain` points at the named thing, and at the word that matters, in the built-in scenes.

Run it in the workspace of the quickstart, after extract-features. The scenes are unseen ones.

The pointing game (Zhang et al. 2016): a sentence names one thing of the picture, such as "a red car". It is a hit if
the middle of the strongest block lies in the thing's box, which holds all pixels that drawing the thing changes.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from PIL import Image

from dpce_cli.core.scenes import drawing
from dpce_cli.core.scenes.dataset import SIZE, sample_splits
from dpce_cli.core.scenes.facts import Scene
from scene_details import pairs_of, row

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of the picture's sides."""
DRAWS = {"house": "_house", "tree": "_tree", "vehicle": "_vehicle", "person": "draw_person"}
NUMBERS = {1: "a", 2: "two", 3: "three"}


class Named(NamedTuple):
    kind: str
    sentence: str
    boxes: list[Box]
    """One per thing, such as two houses."""


def draw_with_boxes(scene: Scene, seed: str) -> tuple[Image.Image, dict[str, list[Box]]]:
    """The picture, and the boxes of its things, in the order in which they are drawn."""
    boxes = defaultdict[str, list[Box]](list)

    def recorded(what: str, draw: Callable[..., None]) -> Callable[..., None]:
        def draw_and_record(canvas: Any, *arguments: Any) -> None:
            before = np.array(canvas.image)
            draw(canvas, *arguments)
            down, across = np.nonzero((np.array(canvas.image) != before).any(2))
            if len(down):
                side = canvas.image.width
                edges = (across.min(), down.min(), across.max() + 1, down.max() + 1)
                boxes[what].append(tuple(float(edge / side) for edge in edges))  # type: ignore[arg-type]

        return draw_and_record

    with ExitStack() as patches:
        for what, name in DRAWS.items():
            patches.enter_context(patch.object(drawing, name, recorded(what, getattr(drawing, name))))
        return drawing.draw_scene(scene, SIZE, random.Random(seed)), boxes


def named_things(scene: Scene, boxes: dict[str, list[Box]]) -> Iterator[Named]:
    """A sentence for each thing of the scene."""
    if scene.vehicle:
        sentence = "a taxi" if scene.vehicle == "taxi" else f"a {scene.vehicle_colour} {scene.vehicle}"
        yield Named(scene.vehicle, sentence, boxes["vehicle"])
    several = "s" if scene.houses > 1 else ""
    yield Named("house", f"{NUMBERS[scene.houses]} {scene.house_colour} house{several}", boxes["house"])
    if scene.trees:
        yield Named("tree", f"{NUMBERS[scene.trees]} tree{'s' if scene.trees > 1 else ''}", boxes["tree"])
    for person, box in zip(scene.people, boxes["person"], strict=True):
        yield Named("person", f"a {person.kind} in {person.clothes}", [box])


def share_in(boxes: list[Box], points: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """The share of points `(points, 2)`, x and y, that lie in one of the boxes."""
    left, top, right, bottom = np.array(boxes).T[:, None]
    x, y = points.T[..., None]
    return float(((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).any(1).mean())


def measure(options: argparse.Namespace) -> None:
    from dpce_cli.core.retrieval.explaining import explain, explain_words
    from dpce_cli.core.sharing.finding import find_model
    from dpce_cli.core.text.tokenizer import tokenize
    from dpce_cli.core.workspace.workspace import Workspace

    model = find_model(None, Workspace(options.workspace))
    everywhere = np.stack(np.meshgrid(*[np.linspace(0, 1, 101)] * 2), -1).reshape(-1, 2)
    hits, chance = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for number, scene in enumerate(sample_splits(options.seed, {"test": options.scenes})["test"]):
        picture, boxes = draw_with_boxes(scene, f"{options.seed} {number}")
        for named in named_things(scene, boxes):
            heat = explain(model, picture, named.sentence).heat
            assert heat is not None
            for kind in (named.kind, "all"):
                hits[kind].append(share_in(named.boxes, np.array([heat.middle(*heat.strongest)])))
                chance[kind].append(share_in(named.boxes, everywhere))
    print(
        f"{options.scenes} unseen scenes, seed {options.seed}: the strongest block is in the named thing's box | chance"
    )
    for kind in sorted(hits, key=lambda kind: (kind != "all", kind)):
        count = f"{sum(hits[kind]):.0f} of {len(hits[kind])}"
        row(kind, count, f"{100 * np.mean(hits[kind]):.1f} %", f"{100 * np.mean(chance[kind]):.1f} %")

    print(f"\n{options.pairs} pairs of scenes that differ in one colour: the colour's word")
    colours: dict[str, Callable[[Scene], str]] = {
        "clothes": lambda scene: scene.people[0].clothes,
        "house's colour": lambda scene: scene.house_colour,
    }
    for fact, colour_of in colours.items():
        tells = raises = 0
        for right, wrong, caption in pairs_of(fact, options.pairs, options.seed):
            pictures = model.encode_images(
                drawing.draw_scene(scene, SIZE, random.Random(caption)) for scene in (right, wrong)
            )
            first, second = (
                np.array([word.share for word in explain_words(model, picture, caption)[0]]) for picture in pictures
            )
            words = tokenize(caption, lowercase=True)
            is_colour = np.array([word == colour_of(right) for word in words])
            tells += bool(is_colour[(first - second).argmax()])
            raises += bool(is_colour[first.argmax()])
        row(f"{fact}: raises the margin between both pictures most", f"{tells} of {options.pairs}")
        row(f"{fact}: raises the similarity to the right picture most", f"{raises} of {options.pairs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="not that of the training scenes")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
