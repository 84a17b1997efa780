#!/usr/bin/env python3
"""Ways to combine a query with a term that is added or taken away: precision on the built-in scenes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from dpce_cli.core.scenes.dataset import sample_splits
from dpce_cli.core.scenes.facts import CLOTHES, ITEM_COLOURS, SKIES, VEHICLE_COLOURS, Scene
from dpce_cli.core.sharing.finding import workspace_model
from dpce_cli.core.workspace.artefacts import load_features
from dpce_cli.core.workspace.workspace import Workspace

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
SKY = {
    "sunny": "a sunny day",
    "sunset": "at sunset",
    "night": "at night",
    "rain": "in the rain",
    "snow": "in the snow",
}
TOP = 10


def minus_queries() -> list[tuple[str, str, Callable[[Scene], bool]]]:
    """A sentence, what is taken away, and which scenes are right."""
    return [
        *(("a car", f"a {colour} car", partial(_has_other_car, colour)) for colour in VEHICLE_COLOURS["car"]),
        *(("an umbrella", f"a {c} umbrella", partial(_has_other, "umbrella", "item", c, "")) for c in ITEM_COLOURS),
        *(
            (f"a {kind} hailing a taxi", SKY[sky], partial(_hails_under_another, sky, kind))
            for kind in ("woman", "man")
            for sky in SKIES
        ),
        *(
            (f"a {kind} with a dog", f"a {kind} in {colour}", partial(_has_other, "dog", "clothes", colour, kind))
            for kind in ("woman", "man")
            for colour in CLOTHES
        ),
    ]


def _has_other_car(colour: str, scene: Scene) -> bool:
    return scene.vehicle == "car" and scene.vehicle_colour != colour


def _hails_under_another(sky: str, kind: str, scene: Scene) -> bool:
    return scene.sky != sky and any(person.kind == kind and person.action == "hail" for person in scene.people)


def _has_other(action: str, attribute: str, value: str, kind: str, scene: Scene) -> bool:
    """Whether somebody (of a kind) does this, and nobody who does it has the value."""
    values = [getattr(p, attribute) for p in scene.people if p.action == action and kind in ("", p.kind)]
    return bool(values) and value not in values


def unit(vector: Array) -> Array:
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def standardised(scores: Array) -> Array:
    return np.asarray((scores - scores.mean()) / scores.std(), dtype=np.float32)


def scores_of(way: str, weight: float, images: Array, hubness: Array, query: Array, term: Array, own: float) -> Array:
    """Scores of all images; `own` is 1 for sentences, whose scores are corrected for hubs, and 0 for photos."""
    if way == "sum":
        return images @ unit(query + weight * term) - own * hubness
    if way == "without its direction":
        rest = query - abs(weight) * (query @ term) * term if weight < 0 else query + weight * term
        return images @ unit(rest) - own * hubness
    first, second = standardised(images @ query - own * hubness), weight * standardised(images @ term - hubness)
    return first + second if way == "sum of scores" else np.minimum(first, second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    workspace = Workspace(parser.parse_args().workspace)
    dataset = workspace.load_dataset()
    drawn = sample_splits(dataset.config.seed, {name: len(dataset.split(name)) for name in ("train", "val", "test")})
    pools = {split: Pool(workspace, split, drawn[split]) for split in ("val", "test")}
    for way, weights in {
        "sum": (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4),
        "sum of scores": (0.25, 0.5, 1, 2, 3),
        "minimum of scores": (0.5, 1, 2),
        "without its direction": (0.5, 1, 1.5),
    }.items():
        for weight in weights:
            shown = [f"{split}: minus {pool.minus(way, weight):.1f}, photo {pool.photo(way, weight):.1f}"
                     for split, pool in pools.items()]  # fmt: skip
            print(f"{way:22} weight {weight:<5g}", "   ".join(shown), flush=True)


class Pool:
    """The embeddings of a split's scenes, and of the sentences."""

    def __init__(self, workspace: Workspace, split: str, scenes: list[Scene]) -> None:
        store, checkpoint = load_features(workspace, split)
        model = workspace_model(workspace, checkpoint)
        assert store.image_hubness is not None, "run 'dpce extract-features' again"
        self.scenes, self.images, self.hubness = scenes, store.image_embeddings.numpy(), store.image_hubness.numpy()
        self.queries = [(model.encode_text([sentence, term]), is_right) for sentence, term, is_right in minus_queries()]
        self.skies = dict(zip(SKIES, model.encode_text([SKY[sky] for sky in SKIES]), strict=True))

    def minus(self, way: str, weight: float) -> float:
        """Precision of sentences less a term, in percent."""
        rates = []
        for (query, term), is_right in self.queries:
            right = np.array([is_right(scene) for scene in self.scenes])
            if right.sum() >= 3:
                rates.append(_hit_rate(scores_of(way, -weight, self.images, self.hubness, query, term, 1.0), right))
        return 100 * float(np.mean(rates))

    def photo(self, way: str, weight: float) -> float:
        """Precision of photos with another sky, in percent."""
        rates = []
        for index, scene in enumerate(self.scenes[:100]):
            actions = {person.action for person in scene.people}
            same = [s.vehicle == scene.vehicle and bool(actions & {p.action for p in s.people}) for s in self.scenes]
            for sky in (sky for sky in SKIES if sky != scene.sky):
                right = np.array([one and other.sky == sky for one, other in zip(same, self.scenes, strict=True)])
                if right.any():
                    query = self.images[index]
                    scores = scores_of(way, weight, self.images, self.hubness, query, self.skies[sky], 0.0)
                    scores[index] = -np.inf  # the query itself
                    rates.append(_hit_rate(scores, right))
        return 100 * float(np.mean(rates))


def _hit_rate(scores: Array, right: Array) -> float:
    best = np.argsort(-scores)[: min(TOP, int(right.sum()))]
    return float(right[best].mean())


if __name__ == "__main__":
    main()
