"""Does a photo prefer its own caption to the same caption with one detail swapped?

"Instance-level" retrieval promises to tell two photos apart by number, colour and position (Zheng et al. 2020, section
1). Recall does not show whether a model keeps this promise, because captions mostly differ in their subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.text.details import Kinds
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.workspace.features import FeatureStore


@dataclass(frozen=True, kw_only=True)
class DetailAccuracy:
    """How well photos tell true captions from captions with one detail swapped."""

    captions: int
    """Captions with exactly one word of the kind."""
    accuracy: float
    """Fraction of swaps where the photo is more similar to the true caption; chance is 0.5. Captions weigh the same."""
    balanced: float | None
    """The mean over pairs of words, where each word of a pair is as often the true one: 0.5 for a model that does not
    look at the photo and prefers common words. Pairs weigh as many captions as the rarer word has. None: no caption of
    a pair has the other word."""


@dataclass(frozen=True, kw_only=True)
class Swap:
    """A caption with one word replaced."""

    caption: int
    true: str
    other: str
    words: tuple[str, ...]
    """With `other` in the place of `true`."""


def measure_details(model: Model, store: FeatureStore, kinds: Kinds) -> dict[str, DetailAccuracy | None]:
    """Swap one word of each kind in the captions of a split, and count how often the photo prefers the true caption.

    Words are replaced by those that the model knows. Equal similarities count as wrong. None if there is no swap.

    Args:
        store: the split's embeddings by `model`.
    """
    captions = [_known_words(model, caption) for caption in store.captions]
    measured = dict[str, DetailAccuracy | None]()
    for kind, groups in kinds.items():
        known = [[word for word in group if word in model.vocabulary] for group in groups]
        swaps = swap_details(captions, known)
        if not swaps:
            measured[kind] = None
            continue
        caption = torch.tensor([swap.caption for swap in swaps], dtype=torch.long)
        photos = store.image_embeddings[store.image_of_text[caption]]
        wrong = torch.from_numpy(model.encode_text([" ".join(swap.words) for swap in swaps]))
        is_right = (photos * store.text_embeddings[caption]).sum(1) > (photos * wrong).sum(1)
        measured[kind] = detail_accuracy(swaps, is_right.tolist())
    return measured


def _known_words(model: Model, caption: str) -> list[str]:
    """The words of a caption that the model reads."""
    words = tokenize(caption, lowercase=model.vocabulary.lowercase)
    return [word for word in words if word in model.vocabulary][: model.config.text.max_words]


def swap_details(captions: Sequence[Sequence[str]], groups: Sequence[Sequence[str]]) -> list[Swap]:
    """Replace the word of a kind in each caption that has exactly one, by each other word of its group."""
    group_of = {word: group for group in groups for word in group}
    swaps = list[Swap]()
    for number, words in enumerate(captions):
        places = [place for place, word in enumerate(words) if word in group_of]
        if len(places) == 1:
            place, true = places[0], words[places[0]]
            swaps += [
                Swap(caption=number, true=true, other=other, words=(*words[:place], other, *words[place + 1 :]))
                for other in group_of[true]
                if other != true
            ]
    return swaps


def detail_accuracy(swaps: Sequence[Swap], is_right: Sequence[bool]) -> DetailAccuracy:
    """How well swapped captions are told from true ones.

    Args:
        swaps: at least one.
        is_right: for each swap, whether its photo prefers the true caption.
    """
    of_caption, of_words = dict[int, list[bool]](), dict[tuple[str, str], list[bool]]()
    for swap, right in zip(swaps, is_right, strict=True):
        of_caption.setdefault(swap.caption, []).append(right)
        of_words.setdefault((swap.true, swap.other), []).append(right)
    total, captions = 0.0, 0
    for (true, other), rights in of_words.items():
        if true < other and (reverse := of_words.get((other, true))):
            weight = min(len(rights), len(reverse))
            total += weight * (fmean(rights) + fmean(reverse)) / 2
            captions += weight
    return DetailAccuracy(
        captions=len(of_caption),
        accuracy=fmean(map(fmean, of_caption.values())),
        balanced=total / captions if captions else None,
    )
