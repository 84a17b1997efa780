"""Does a photo prefer its own caption to the same caption with one detail swapped?

"Instance-level" retrieval promises to tell two photos apart by number, colour and position (Zheng et al. 2020, section
1). Recall does not show whether a model keeps this promise, because captions mostly differ in their subjects.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dpce_cli.core.errors import DataError
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.workspace.features import FeatureStore

Kinds = Mapping[str, Sequence[Sequence[str]]]
"""Groups of words that replace each other, by kind of detail."""


@dataclass(frozen=True, kw_only=True)
class DetailAccuracy:
    """How well photos tell true captions from captions with one detail swapped."""

    captions: int
    """Captions with exactly one word of the kind."""
    accuracy: float
    """Fraction of swaps where the photo is more similar to the true caption; chance is 0.5. Captions count alike."""


def read_details(path: Path) -> Kinds:
    """Read the words of each kind of detail from a TOML file such as `examples/details.toml`.

    Raises:
        DataError: it cannot be read, is not TOML, or a kind is not a list of strings of at least two different words.
    """
    try:
        kinds = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as TOML ({error}); start from examples/details.toml") from error
    read = dict[str, list[list[str]]]()
    for kind, groups in kinds.items():
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise DataError(f'{path}: {kind}: give a list of strings of words, for example ["left right"]')
        read[kind] = [group.split() for group in groups]
        words = [word for group in read[kind] for word in group]
        if len(set(words)) < len(words) or any(len(group) < 2 for group in read[kind]):
            raise DataError(f"{path}: {kind}: give at least two words per string, and each word once")
    return read


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
    swapped, of_caption = list[str](), list[int]()
    for number, words in enumerate(captions):
        places = [place for place, word in enumerate(words) if word in group_of]
        if len(places) != 1:
            continue
        place = places[0]
        others = [other for other in group_of[words[place]] if other != words[place]]
        swapped += [" ".join([*words[:place], other, *words[place + 1 :]]) for other in others]
        of_caption += [number] * len(others)
    if not swapped:
        return None
    caption = torch.tensor(of_caption)
    photos = store.image_embeddings[store.image_of_text[caption]]
    wrong = torch.from_numpy(model.encode_text(swapped))
    is_right = ((photos * store.text_embeddings[caption]).sum(1) > (photos * wrong).sum(1)).double()
    counts = torch.bincount(caption, minlength=len(captions))
    per_caption = torch.bincount(caption, weights=is_right, minlength=len(captions))[counts > 0] / counts[counts > 0]
    return DetailAccuracy(captions=len(per_caption), accuracy=float(per_caption.mean()))
