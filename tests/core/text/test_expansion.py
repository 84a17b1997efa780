from __future__ import annotations

import numpy as np
import pytest

from dpce_cli.core.errors import VocabularyError
from dpce_cli.core.text.expansion import mapped_rows
from dpce_cli.core.text.vocabulary import Vocabulary


def test_unseen_words_get_the_rows_that_a_linear_map_gives() -> None:
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(80)]
    vectors = {word: generator.normal(size=5).astype(np.float32) for word in words}
    matrix, offset = generator.normal(size=(5, 3)), generator.normal(size=3)
    rows = (np.stack(list(vectors.values())) @ matrix + offset).astype(np.float32)
    found = mapped_rows(Vocabulary(tuple(words[:60]), True), rows[:60], vectors, words[60:])
    assert found.shape == (20, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rows[60:], atol=0.15)  # the penalty shrinks the map a little
    assert np.abs(found - rows[:60].mean(0)).mean() > 0.5


def test_words_of_the_model_without_a_vector_do_not_matter() -> None:
    generator = np.random.default_rng(1)
    words = [f"w{number}" for number in range(30)]
    vectors = {word: generator.normal(size=4).astype(np.float32) for word in words}
    rows = np.stack(list(vectors.values()))
    alone = mapped_rows(Vocabulary(tuple(words[:20]), True), rows[:20], vectors, words[20:])
    odd = np.full((1, 4), 1e6, np.float32)
    both = mapped_rows(Vocabulary(("odd", *words[:20]), True), np.concatenate([odd, rows[:20]]), vectors, words[20:])
    np.testing.assert_array_equal(alone, both)


def test_too_few_shared_words_are_refused() -> None:
    vectors = {"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32), "c": np.ones(2, np.float32)}
    with pytest.raises(VocabularyError, match=r"share 2 words; a map between vectors of 2 numbers needs more"):
        mapped_rows(Vocabulary(("a", "b", "x"), True), np.ones((3, 2), np.float32), vectors, ["c"])
