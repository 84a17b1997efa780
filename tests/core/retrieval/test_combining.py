from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpce_cli.core.errors import QueryError
from dpce_cli.core.retrieval.combining import MINUS_WEIGHT, SENTENCE_TO_PHOTO, Term, combined, parse_term
from dpce_cli.core.retrieval.model import Model
from tests.core.conftest import Trained
from tests.core.tiny import checkpoint


@pytest.fixture
def model(learning_stage1: Trained, tiny_cnn: None) -> Model:
    return Model.of_checkpoint(checkpoint(learning_stage1.workspace, 1, "best"))


@pytest.mark.parametrize(
    ("text", "what", "weight"),
    [
        ("sunset", "sunset", None),
        ("2:sunset", "sunset", 2.0),
        (".5: a red car ", "a red car", 0.5),
        ("image:a b.jpg", Path("a b.jpg"), None),
        ("3:image:x.jpg", Path("x.jpg"), 3.0),
        ("at 10:30", "at 10:30", None),
        ("7:30 in the morning", "7:30 in the morning", None),
        ("2: 3 people", "3 people", 2.0),
    ],
)
def test_a_term_is_a_sentence_or_a_photo_with_or_without_a_weight(
    text: str, what: str | Path, weight: float | None
) -> None:
    assert parse_term(text, is_minus=True) == Term(what=what, weight=weight, is_minus=True)


@pytest.mark.parametrize("text", ["", "2:", "image:", "0:sunset", "2:image:"])
def test_terms_without_a_meaning_are_refused(text: str) -> None:
    with pytest.raises(QueryError, match=r"^--plus .*such as 2:sunset"):
        parse_term(text, is_minus=False)


def test_a_combined_query_is_the_weighted_sum_of_its_parts(model: Model) -> None:
    words = model.vocabulary.words[:3]
    query, plus, minus = model.encode_text(list(words))
    terms = [Term(what=words[1], weight=3.0), Term(what=words[2], is_minus=True)]
    expected = query + 3 * plus - MINUS_WEIGHT * minus
    found = combined(model, query, terms, is_photo=False)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=1e-5, atol=1e-6)
    photo = combined(model, query, [Term(what=words[1])], is_photo=True)
    expected = query + SENTENCE_TO_PHOTO * plus
    np.testing.assert_allclose(photo, expected / np.linalg.norm(expected), rtol=1e-5, atol=1e-6)
    assert combined(model, query, [], is_photo=False) == pytest.approx(query, abs=1e-6)


def test_a_query_that_is_taken_away_whole_is_refused(model: Model) -> None:
    word = model.vocabulary.words[0]
    with pytest.raises(QueryError, match="take away all of the query"):
        combined(model, model.encode_text([word])[0], [Term(what=word, weight=1.0, is_minus=True)], is_photo=False)
