#!/usr/bin/env python3
"""Whether one cut-off of the relevance serves all kinds of queries: the share of queries that get an answer.

Relevance is fitted on a random half of the photos of an extracted split, and judged on the other half. A query is
answered if the relevance of its first result reaches the cut-off. It should be where the query's photo is in the
gallery. Where it is not, other photos can still fit; so this share should be smaller, but need not be 0.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from dpce_cli.core.retrieval.calibration import fit_relevance, labelled_results
from dpce_cli.core.retrieval.relevance import Relevance
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.workspace.artefacts import load_features
from dpce_cli.core.workspace.features import FeatureStore
from dpce_cli.core.workspace.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

CUT_OFFS = (0.3, 0.4, 0.5)
BINS = 10


def part_of(store: FeatureStore, images: list[int]) -> FeatureStore:
    """The store with these images and their captions only."""
    import torch

    new = torch.full((len(store.image_ids),), -1)
    new[images] = torch.arange(len(images))
    texts = (new[store.image_of_text] >= 0).nonzero().squeeze(1)
    return FeatureStore(
        image_embeddings=store.image_embeddings[images],
        text_embeddings=store.text_embeddings[texts],
        image_hubness=store.image_hubness[images],
        text_hubness=store.text_hubness[texts],
        image_of_text=new[store.image_of_text[texts]],
        image_ids=tuple(store.image_ids[image] for image in images),
        image_paths=tuple(store.image_paths[image] for image in images),
        identities=tuple(store.identities[image] for image in images),
        captions=tuple(store.captions[text] for text in texts.tolist()),
        meta=store.meta,
    )


def calibration_error(curve: Relevance, scores: Tensor, agreement: Tensor) -> float:
    """Expected calibration error in points: the mean distance of relevance and agreement, over ten bins."""
    import torch

    relevance = torch.tensor([curve.of(score) for score in scores.tolist()])
    bins = (relevance * BINS).long().clamp(max=BINS - 1)
    distances = [abs(float((relevance - agreement)[bins == number].sum())) for number in range(BINS)]
    return 100 * sum(distances) / len(relevance)


def kind_of(caption: str) -> str:
    words = len(tokenize(caption, lowercase=True))
    return "up to 6 words" if words <= 6 else "more than 12 words" if words > 12 else "7 to 12 words"


def first_relevances(judged: FeatureStore, curve: Relevance, *, photos_ask: bool, there: bool) -> list[float]:
    """The relevance of each query's first result; `there`: whether the query's own photo or captions are searched."""
    import torch

    scores = judged.image_embeddings @ judged.text_embeddings.T
    scores -= judged.text_hubness if photos_ask else judged.image_hubness[:, None]
    if not there:
        scores[judged.image_of_text, torch.arange(len(judged.captions))] = -torch.inf
    return [curve.of(score) for score in scores.amax(1 if photos_ask else 0).tolist()]


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    parser.add_argument("--split", default="val", help="an extracted split")
    parser.add_argument("--draws", type=int, default=5, help="random halves of the photos")
    options = parser.parse_args()
    store, _ = load_features(Workspace(options.workspace), options.split)
    errors = defaultdict[str, list[float]](list)
    found = defaultdict[tuple[str, bool], list[float]](list)
    for draw in range(options.draws):
        order = torch.randperm(len(store.image_ids), generator=torch.Generator().manual_seed(draw))
        fitted, judged = (part_of(store, sorted(half.tolist())) for half in order.chunk(2))
        curves, labelled = fit_relevance(fitted), labelled_results(judged)
        if curves is None or labelled is None:
            parser.error(f"the {options.split} split has no photos with several captions")
        for name, curve, results in zip(
            ("sentence to photo", "photo to sentence"),
            (curves.text_to_image, curves.image_to_text),
            labelled,
            strict=True,
        ):
            errors[name].append(calibration_error(curve, *results))
        for there in (True, False):
            by_text = first_relevances(judged, curves.text_to_image, photos_ask=False, there=there)
            for caption, relevance in zip(judged.captions, by_text, strict=True):
                found[kind_of(caption), there].append(relevance)
            by_photo = first_relevances(judged, curves.image_to_text, photos_ask=True, there=there)
            found["photos as queries", there] += by_photo
    for name, values in errors.items():
        print(f"{name}: expected calibration error {statistics.mean(values):.1f} points")
    print(f"answered, in percent of the queries, where the photo is there / is not there; {options.draws} draws")
    print(f"  {'relevance of at least':22}" + "".join(f"{cut_off:>15g}" for cut_off in CUT_OFFS) + "        queries")
    for kind in dict.fromkeys(kind for kind, _ in found):
        shares = [
            " / ".join(
                f"{100 * statistics.mean(r >= cut_off for r in found[kind, there]):5.1f}" for there in (True, False)
            )
            for cut_off in CUT_OFFS
        ]
        print(f"  {kind:22}" + "".join(f"{share:>15}" for share in shares) + f"{len(found[kind, True]):>15,}")


if __name__ == "__main__":
    main()
