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
    """Fraction of swaps where the photo is more similar to the true caption; chance is 0.5. Captions count alike."""
    balanced: float | None
    """The mean over pairs of words, where each word of a pair is as often the true one: 0.5 for a model that does not
    look at the photo and prefers common words. Pairs weigh as many captions as the rarer word has. None: no caption of
    a pair has the other word."""


def measure_details(model: Model, store: FeatureStore, kinds: Kinds) -> dict[str, DetailAccuracy | None]:
    """Swap one word of each kind in the captions of a split, and count how often the photo prefers the true caption.

    A caption counts where it has exactly one word of the kind, which is replaced by each other word of its group that
    the model knows. Equal similarities count as wrong. None where there is no such caption.

    Args:
        store: the split's embeddings by `model`.
    """
    captions = [_known_words(model, caption) for caption in store.captions]
    return {kind: _measure(model, store, captions, groups) for kind, groups in kinds.items()}


def _known_words(model: Model, caption: str) -> list[str]:
    """What the model reads of a caption."""
    words = tokenize(caption, lowercase=model.vocabulary.lowercase)
    return [word for word in words if model.vocabulary.token_ids([word])][: model.config.text.max_words]


def _measure(
    model: Model, store: FeatureStore, captions: Sequence[Sequence[str]], groups: Sequence[Sequence[str]]
) -> DetailAccuracy | None:
    group_of = {word: [w for w in group if model.vocabulary.token_ids([w])] for group in groups for word in group}
    swapped, of_caption, pairs = list[str](), list[int](), list[tuple[str, str]]()
    for number, words in enumerate(captions):
        places = [place for place, word in enumerate(words) if word in group_of]
        if len(places) != 1:
            continue
        place = places[0]
        others = [other for other in group_of[words[place]] if other != words[place]]
        swapped += [" ".join([*words[:place], other, *words[place + 1 :]]) for other in others]
        of_caption += [number] * len(others)
        pairs += [(words[place], other) for other in others]
    if not swapped:
        return None
    caption = torch.tensor(of_caption)
    photos = store.image_embeddings[store.image_of_text[caption]]
    wrong = torch.from_numpy(model.encode_text(swapped))
    is_right = ((photos * store.text_embeddings[caption]).sum(1) > (photos * wrong).sum(1)).double()
    counts = torch.bincount(caption, minlength=len(captions))
    per_caption = torch.bincount(caption, weights=is_right, minlength=len(captions))[counts > 0] / counts[counts > 0]
    return DetailAccuracy(
        captions=len(per_caption), accuracy=float(per_caption.mean()), balanced=_balanced(pairs, is_right.tolist())
    )


def _balanced(pairs: Sequence[tuple[str, str]], is_right: Sequence[float]) -> float | None:
    """See `DetailAccuracy.balanced`; each pair has the true word and the other one."""
    found = dict[tuple[str, str], list[float]]()
    for pair, right in zip(pairs, is_right, strict=True):
        found.setdefault(pair, []).append(right)
    total, weights = 0.0, 0
    for (true, other), rights in found.items():
        if true < other and (reversed_rights := found.get((other, true))):
            weight = min(len(rights), len(reversed_rights))
            total += weight * (fmean(rights) + fmean(reversed_rights)) / 2
            weights += weight
    return total / weights if weights else None
