"""Rows for words that a model has not seen, from word vectors of another source (Kiros et al. 2015, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dpce_cli.core.errors import VocabularyError
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.text.word2vec_files import Row

_RIDGE = 0.01
"""Penalty of the least squares, relative to the mean square of the vectors; it decides where few words are shared."""


def mapped_rows(vocabulary: Vocabulary, learned: Row, vectors: Mapping[str, Row], words: list[str]) -> Row:
    """Rows `(words, dim)` for `words`: their vectors, through the affine map that turns known vectors into known rows.

    The map is fitted by ridge regression on the words of `vocabulary` that have a vector. Kiros et al. use least
    squares without penalty and without offset, on 20,000 words.

    Args:
        vocabulary: the words of the learned rows.
        learned: `(len(vocabulary), dim)`.
        vectors: the vector of each of `words`, and of words of `vocabulary`.

    Raises:
        VocabularyError: fewer words are shared than a vector has numbers.
    """
    shared = [(row, vectors[word]) for word, row in zip(vocabulary.words, learned, strict=True) if word in vectors]
    size = len(next(iter(vectors.values()))) if vectors else 0
    if len(shared) <= size:
        raise VocabularyError(
            f"the model and the vectors share {len(shared)} words; a map between vectors of {size} numbers needs more"
        )
    targets, sources = (np.stack(side).astype(np.float64) for side in zip(*shared, strict=True))
    middle, goal = sources.mean(0), targets.mean(0)
    centred = sources - middle
    gram = centred.T @ centred
    penalty = _RIDGE * np.trace(gram) / size * np.eye(size)
    matrix = np.linalg.solve(gram + penalty, centred.T @ (targets - goal))
    asked = np.array([vectors[word] for word in words]).reshape(-1, size)
    rows: Row = ((asked - middle) @ matrix + goal).astype(np.float32)
    return rows
