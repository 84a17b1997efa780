#!/usr/bin/env python3
"""What a model of the built-in scenes sees: the right one of thousands of unseen scenes, and single facts.

Run it in the workspace of the quickstart, after extract-features. Captions are the data set's own. A caption that is
true of several scenes of the pool can find any of them, so that recall has a limit.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from dpce_cli.core.scenes import facts
from dpce_cli.core.scenes.captions import Caption, write_captions
from dpce_cli.core.scenes.dataset import SIZE, sample_splits
from dpce_cli.core.scenes.drawing import draw_scene
from dpce_cli.core.scenes.facts import Facts, Scene, facts_of, is_true

Array = NDArray[np.float32]


def other(values: Sequence[str], value: str, rng: random.Random) -> str:
    return rng.choice([one for one in values if one != value])


def with_first(scene: Scene, **values: str) -> Scene:
    first, *others = scene.people
    return replace(scene, people=(replace(first, **values), *others))


CHANGES: dict[str, tuple[int, Callable[[Scene, random.Random], Scene]]] = {
    "clothes": (1, lambda s, rng: with_first(s, clothes=other(facts.CLOTHES, s.people[0].clothes, rng))),
    "man/woman": (1, lambda s, rng: with_first(s, kind=facts.COUNTERPART[s.people[0].kind])),
    "hair": (1, lambda s, rng: with_first(s, hair=other(facts.HAIR[:-1], s.people[0].hair, rng))),
    "house's colour": (1, lambda s, rng: replace(s, house_colour=other(facts.HOUSE_COLOURS, s.house_colour, rng))),
    "one or two houses": (1, lambda s, rng: replace(s, houses=3 - s.houses)),
    "person left or right": (1, lambda s, rng: facts.with_sides_swapped(s)),
    "houses left or right": (1, lambda s, rng: replace(s, house_side=facts.opposite(s.house_side))),
    "two people's sides": (2, lambda s, rng: facts.with_sides_swapped(s)),
}
"""By the name of a fact: the number of people in the scene, and what changes the fact."""


class Answers:
    """Finds the scenes of a pool of which stated facts are true."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._things: defaultdict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
        for number, scene in enumerate(scenes):
            for index, thing in enumerate(facts_of(scene)):
                for pair in thing:
                    self._things[pair].add((number, index))

    def __call__(self, stated: Facts) -> set[int]:
        """`facts.is_true` of all scenes at once."""
        things = (set.intersection(*(self._things[pair] for pair in thing)) for thing in stated)
        return set.intersection(*({number for number, _ in found} for found in things))


def pairs_of(fact: str, count: int, seed: int) -> Iterator[tuple[Scene, Scene, str]]:
    """`count` pairs of scenes that differ in one fact, and a caption that is true of the first one only."""
    people, change = CHANGES[fact]
    rng = random.Random(f"{seed} {fact}")
    while count:
        scene = facts.sample_scene(rng)
        if len(scene.people) != people:
            continue
        changed = change(scene, rng)
        telling = [c.text for c in write_captions(scene, rng) if not is_true(c.facts, facts_of(changed))]
        if telling:
            yield scene, changed, telling[0]
            count -= 1


def measure(options: argparse.Namespace) -> None:
    import torch

    from dpce_cli.core.retrieval.metrics import evaluate
    from dpce_cli.core.retrieval.ranks import rank_embeddings
    from dpce_cli.core.sharing.finding import find_model
    from dpce_cli.core.workspace.workspace import Workspace

    workspace = Workspace(options.workspace)
    model = find_model(None, workspace)
    train = len(workspace.load_dataset().split("train"))
    bank = model.bank
    assert bank is not None, "run dpce extract-features first"

    def pictures(scenes: Sequence[Scene], name: str) -> torch.Tensor:
        """(scenes, dim + 1): embeddings and minus their hubness."""
        drawn = (draw_scene(scene, SIZE, random.Random(f"{options.seed} {name} {i}")) for i, scene in enumerate(scenes))
        embeddings = torch.from_numpy(model.encode_images(drawn))
        return torch.cat([embeddings, -bank.hubness_of_images(embeddings)[:, None]], 1)

    def sentences(texts: Sequence[str]) -> torch.Tensor:
        """(texts, dim + 2): embeddings, 1, and minus their hubness."""
        embeddings = torch.from_numpy(model.encode_text(texts))
        ones = torch.ones(len(texts), 1)
        return torch.cat([embeddings, ones, -bank.hubness_of_texts(embeddings)[:, None]], 1)

    seen = {facts_of(scene) for scene in sample_splits(model.config.seed, {"train": train})["train"]}
    drawn = sample_splits(options.seed, {"test": options.pool + 100})["test"]
    answer = next(scene for scene in drawn if is_true(facts.QUERY_FACTS, facts_of(scene)))
    unseen = [scene for scene in drawn if scene is not answer and facts_of(scene) not in seen]
    pool = [answer, *unseen[: options.pool - 1]]
    captions = [write_captions(scene, random.Random(f"{options.seed} {i}")) for i, scene in enumerate(pool)]
    owner = torch.tensor([i for i, written in enumerate(captions) for _ in written])
    images, texts = pictures(pool, "pool"), sentences([caption.text for written in captions for caption in written])
    answers = Answers(pool)
    limit = fmean(1 / len(answers(caption.facts)) for written in captions for caption in written)

    plain = Caption(facts.QUERY, facts.QUERY_FACTS), *(written[0] for written in captions[1:])
    clear = [(i, c.text) for i, c in enumerate(plain) if len(c.facts) == 1 and len(answers(c.facts)) == 1]
    asked = clear[: options.queries]
    of_query = torch.tensor([i for i, _ in asked])

    dim = model.dim
    ones = torch.ones(len(images), 1)
    corrected = torch.cat([images, ones], 1)
    print(f"{len(pool)} unseen scenes, seed {options.seed}; plain cosines | hubs corrected")
    both = [
        (images[:, :dim], texts[:, :dim], sentences([text for _, text in asked])[:, :dim]),
        (corrected, texts, sentences([text for _, text in asked])),
    ]
    measured = [evaluate(gallery, written, owner) for gallery, written, _ in both]
    ranks = [rank_embeddings(gallery, queries, of_query).text_to_image for gallery, _, queries in both]
    row("R@1 image-to-text", *(f"{100 * found.image_to_text.r1:.1f} %" for found in measured))
    row(
        "R@1 text-to-image",
        *(f"{100 * found.text_to_image.r1:.1f} %" for found in measured),
        f"limit {100 * limit:.1f} %",
    )
    row(f"{len(asked)} sentences about one person, rank 1", *(str(int((found == 1).sum())) for found in ranks))
    for number, (_, text) in enumerate(asked):
        row(f"  {text}", *(f"rank {int(found[number])}" for found in ranks))

    print(f"\n{options.pairs} pairs of scenes that differ in one fact: the caption prefers the right one")
    for fact in CHANGES:
        pairs = list(pairs_of(fact, options.pairs, options.seed))
        telling = sentences([caption for _, _, caption in pairs])[:, : dim + 1]
        right = pictures([scene for scene, _, _ in pairs], f"{fact} right")
        wrong = pictures([scene for _, scene, _ in pairs], f"{fact} wrong")
        margin = (right - wrong) * telling
        shares = [float((margin[:, :width].sum(1) > 0).double().mean()) for width in (dim, dim + 1)]
        row(fact, *(f"{100 * share:.1f} %" for share in shares))


def row(name: str, *cells: str) -> None:
    print(f"  {name:<72}", *(f"{cell:>9}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    parser.add_argument("--pool", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="not that of the training scenes")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
