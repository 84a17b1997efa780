#!/usr/bin/env python3
"""Ways to combine a query with a term that is added or taken away: precision on the built-in scenes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dpce_cli.core.scenes.dataset import sample_splits
from dpce_cli.core.scenes.facts import CAR_COLOURS, CLOTHES, ITEM_COLOURS, SKIES, Scene
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
    found: list[tuple[str, str, Callable[[Scene], bool]]] = []
    for colour in CAR_COLOURS:
        found.append(("a car", f"a {colour} car", lambda s, c=colour: s.vehicle == "car" and s.vehicle_colour != c))
    for colour in ITEM_COLOURS:
        found.append(("an umbrella", f"a {colour} umbrella", lambda s, c=colour: _has_other(s, "umbrella", "item", c)))
    for kind in ("woman", "man"):
        for sky in SKIES:
            found.append((f"a {kind} hailing a taxi", SKY[sky], lambda s, k=kind, v=sky: _hails(s, k) and s.sky != v))
        for colour in CLOTHES:
            is_right = lambda s, k=kind, c=colour: _has_other(s, "dog", "clothes", c, k)  # noqa: E731
            found.append((f"a {kind} with a dog", f"a {kind} in {colour}", is_right))
    return found


def _hails(scene: Scene, kind: str) -> bool:
    return any(person.kind == kind and person.action == "hail" for person in scene.people)


def _has_other(scene: Scene, action: str, attribute: str, value: str, kind: str = "") -> bool:
    """Whether somebody does this, and nobody who does it has the value."""
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
    for way, weights in {
        "sum": (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4),
        "sum of scores": (0.25, 0.5, 1, 2, 3),
        "minimum of scores": (0.5, 1, 2),
        "without its direction": (0.5, 1, 1.5),
    }.items():
        for weight in weights:
            results = [precision(workspace, split, drawn[split], way, weight) for split in ("val", "test")]
            shown = "   ".join(
                f"{split} minus {m:5.1f} photo {p:5.1f}" for split, (m, p) in zip(("val", "test"), results, strict=True)
            )
            print(f"{way:24} weight {weight:<5g} {shown}", flush=True)


def precision(workspace: Workspace, split: str, scenes: list[Scene], way: str, weight: float) -> tuple[float, float]:
    """Percent of right images among the best, for sentences less a term and for photos with a sky."""
    store, checkpoint = load_features(workspace, split)
    model = workspace_model(workspace, checkpoint)
    images = store.image_embeddings.numpy()
    assert store.image_hubness is not None, "run 'dpce extract-features' again"
    hubness = store.image_hubness.numpy()
    minus, photo = [], []
    for sentence, term, is_right in minus_queries():
        right = np.array([is_right(scene) for scene in scenes])
        if right.sum() >= 3:
            query, other = model.encode_text([sentence, term])
            minus.append(_hit_rate(scores_of(way, -weight, images, hubness, query, other, 1.0), right))
    skies = dict(zip(SKIES, model.encode_text([SKY[sky] for sky in SKIES]), strict=True))
    for index, scene in enumerate(scenes[:100]):
        actions = {person.action for person in scene.people}
        same = [s.vehicle == scene.vehicle and bool(actions & {p.action for p in s.people}) for s in scenes]
        for sky in (sky for sky in SKIES if sky != scene.sky):
            right = np.array([one and other.sky == sky for one, other in zip(same, scenes, strict=True)])
            if right.any():
                photo.append(_hit_rate(scores_of(way, weight, images, hubness, images[index], skies[sky], 0.0), right))
    return 100 * float(np.mean(minus)), 100 * float(np.mean(photo))


def _hit_rate(scores: Array, right: Array) -> float:
    best = np.argsort(-scores)[: min(TOP, int(right.sum()))]
    return float(right[best].mean())


if __name__ == "__main__":
    main()
