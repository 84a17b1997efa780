"""Queries of several sentences and photos: some that answers should fit, and others that they should not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpce_cli.core.errors import QueryError
from dpce_cli.core.retrieval.model import Model

_PHOTO = "image:"
MINUS_WEIGHT = 0.5
"""Chosen on the validation scenes, as `SENTENCE_TO_PHOTO`; see examples/measurements.md."""
SENTENCE_TO_PHOTO = 2.0
"""Weight of a sentence that is added to a photo: photos are nearer to a photo than to any sentence."""

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Term:
    """A sentence or a photo that is added to a query or taken away from it."""

    what: str | Path
    weight: float | None = None
    """Above 0, relative to the query; None: the usual one."""
    is_minus: bool = False

    def __str__(self) -> str:
        factor = f"{self.weight:g} x " if self.weight else ""
        return f"{'minus' if self.is_minus else 'plus'} {factor}{self.what}"


def parse_term(text: str, *, is_minus: bool) -> Term:
    """A term as a person types it: a sentence or `image:PATH`, and before it, if wanted, a weight and a colon.

    A number and a colon before a digit are a time or a ratio, and belong to the sentence.

    >>> parse_term("2:sunset", is_minus=False)
    Term(what='sunset', weight=2.0, is_minus=False)
    >>> parse_term("7:30 in the morning", is_minus=False)
    Term(what='7:30 in the morning', weight=None, is_minus=False)
    >>> parse_term("image:rex.jpg", is_minus=True).what
    PosixPath('rex.jpg')

    Raises:
        QueryError: the weight is 0 or not finite, or nothing follows.
    """
    option = "--minus" if is_minus else "--plus"
    match = re.fullmatch(r"(?:(\d*\.?\d+):(?!\d))?(.*)", text.strip(), flags=re.DOTALL)
    assert match is not None
    number, rest = match[1], match[2].strip()
    weight = float(number) if number else None
    if weight is not None and not 0 < weight < math.inf:
        raise QueryError(f"{option} {text!r}: the weight must be above 0, such as 2:sunset")
    if not rest.removeprefix(_PHOTO):
        raise QueryError(f"{option} {text!r}: give a sentence or {_PHOTO}PATH, such as 2:sunset or {_PHOTO}rex.jpg")
    what = Path(rest.removeprefix(_PHOTO)).expanduser() if rest.startswith(_PHOTO) else rest
    return Term(what=what, weight=weight, is_minus=is_minus)


def combined(model: Model, query: Vector, terms: Sequence[Term], *, is_photo: bool) -> Vector:
    """The embedding `(dim,)` of a query with its terms: the weighted sum of all embeddings, L2-normalised.

    One vector searches galleries of any size. Sums of standardised scores, the minimum of scores, and the projection on
    what is orthogonal to a term were not better on the built-in scenes.

    Args:
        query: `(dim,)`, L2-normalised.
        is_photo: whether the query is a photo.

    Raises:
        QueryError: the model knows no word of a sentence, or the terms cancel the query out.
        DataError: a photo cannot be read.
    """
    total = query.astype(np.float64)
    for term in terms:
        if isinstance(term.what, str):
            (embedding,), usual = model.encode_text([term.what]), SENTENCE_TO_PHOTO if is_photo else 1.0
        else:
            (embedding,), usual = model.encode_images([term.what]), 1.0
        if term.is_minus:
            total -= (term.weight or MINUS_WEIGHT) * embedding
        else:
            total += (term.weight or usual) * embedding
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise QueryError("the terms take away all of the query; use other terms or smaller weights")
    whole: Vector = (total / length).astype(np.float32)
    return whole
