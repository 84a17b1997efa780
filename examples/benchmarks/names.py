#!/usr/bin/env python3
"""How well a word that is learnt from ten captions finds photos, against the word as the model was trained on it."""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path

from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.sharing.finding import workspace_model
from dpce_cli.core.teaching.words import learn_words
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.workspace.artefacts import load_features
from dpce_cli.core.workspace.features import FeatureStore
from dpce_cli.core.workspace.workspace import Workspace

NEW = "rexo"
WORDS = ("snow", "ball", "beach", "grass", "dog", "girl", "water")


def names(options: argparse.Namespace) -> None:
    """For each word and draw: ten photos whose captions have the word teach a new word in its place.

    The photos to find are the others of which at least three captions have the word. Photos of which only one or two
    captions have it are neither right nor wrong.
    """
    workspace = Workspace(options.workspace)
    store, checkpoint = load_features(workspace, options.split, Reporter())
    model = workspace_model(workspace, checkpoint)
    assert model.bank, "the workspace's model has no bank; run dpce extract-features"
    print(f"{len(store.image_ids):,} photos; P@10 and mean average precision in percent")
    learnt, known = [], []
    for word in options.words:
        tasks = [task(model, store, word, draw) for draw in range(options.draws)]
        learnt += [measured for measured, _ in tasks]
        known += [measured for _, measured in tasks]
        print(f"  {word:12} learnt {mean(learnt[-len(tasks) :])}   known {mean(known[-len(tasks) :])}", flush=True)
    print(f"  {'mean':12} learnt {mean(learnt)}   known {mean(known)}")


def mean(measured: list[tuple[float, float]]) -> str:
    return "  ".join(f"{100 * statistics.mean(values):5.1f}" for values in zip(*measured, strict=True))


def task(model: Model, store: FeatureStore, word: str, draw: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Precision at 10 and average precision of the learnt word, and of the word itself."""
    having: dict[int, list[list[str]]] = {}
    for caption, image in zip(store.captions, store.image_of_text.tolist(), strict=True):
        tokens = tokenize(caption, lowercase=model.vocabulary.lowercase)
        if word in tokens:
            having.setdefault(image, []).append(tokens)
    sure = [image for image, captions in having.items() if len(captions) >= 3]
    draws = random.Random(f"{word} {draw}")
    shown = draws.sample(sure, 10)
    captions = [" ".join(NEW if token == word else token for token in draws.choice(having[image])) for image in shown]
    assert model.bank
    taught = learn_words(
        model, [NEW], captions, range(10), store.image_embeddings[shown], model.bank.image_embeddings,
        reporter=Reporter(),
    )  # fmt: skip
    right = set(sure) - set(shown)
    ignored = {*having} - right
    return precision(taught, NEW, store, right, ignored), precision(model, word, store, right, ignored)


def precision(model: Model, query: str, store: FeatureStore, right: set[int], ignored: set[int]) -> tuple[float, float]:
    """Precision at 10 and average precision of a query among the photos that are not ignored."""
    import torch

    scores = store.image_embeddings @ torch.from_numpy(model.encode_text([query])[0]) - store.image_hubness
    order = [image for image in scores.argsort(descending=True).tolist() if image not in ignored]
    places = [place for place, image in enumerate(order, 1) if image in right]
    average = statistics.mean(found / place for found, place in enumerate(places, 1))
    return sum(place <= 10 for place in places) / 10, average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"), help="with an extracted split")
    parser.add_argument("--split", default="val")
    parser.add_argument("--words", nargs="+", default=list(WORDS), help="words of the split's captions")
    parser.add_argument("--draws", type=int, default=3, help="choices of ten photos per word")
    names(parser.parse_args())


if __name__ == "__main__":
    main()
