from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpce_cli.core.errors import VocabularyError
from dpce_cli.core.text.vocabulary import Vocabulary, build_vocabulary, check_no_leak, pack_token_ids

CAPTIONS = [["a", "dog", "runs"], ["a", "cat", "and", "a", "dog"], ["zebra", "and", "cat"]]
VOCABULARY = Vocabulary(("a", "dog", "cat"), lowercase=True)


def test_frequent_words_come_first_and_equally_frequent_ones_alphabetically() -> None:
    vocabulary = build_vocabulary(CAPTIONS, lowercase=False, min_count=1)
    assert vocabulary.words == ("a", "and", "cat", "dog", "runs", "zebra")
    assert not vocabulary.lowercase


def test_the_order_of_the_captions_does_not_change_the_vocabulary() -> None:
    forwards = build_vocabulary(CAPTIONS, lowercase=True, min_count=1)
    backwards = build_vocabulary(CAPTIONS[::-1], lowercase=True, min_count=1)
    assert forwards == backwards
    assert forwards.fingerprint == backwards.fingerprint


def test_rare_words_are_left_out() -> None:
    assert build_vocabulary(CAPTIONS, lowercase=True, min_count=2).words == ("a", "and", "cat", "dog")


@pytest.mark.parametrize("captions", [[], [[]], [["once"]]])
def test_a_vocabulary_without_words_is_an_error(captions: list[list[str]]) -> None:
    with pytest.raises(VocabularyError, match="at least 2 times"):
        build_vocabulary(captions, lowercase=True, min_count=2)


def test_ids_start_at_one_and_unknown_words_are_dropped() -> None:
    assert VOCABULARY.token_ids(["cat", "bird", "a", "dog", "Dog", "a"]) == [3, 1, 2, 1]
    assert VOCABULARY.token_ids([]) == []
    assert len(VOCABULARY) == 3


def test_the_fingerprint_tells_words_order_and_case_apart() -> None:
    others = [
        Vocabulary(("a", "cat", "dog"), lowercase=True),
        Vocabulary(("a", "dog"), lowercase=True),
        Vocabulary(("a", "dog", "cat"), lowercase=False),
        Vocabulary(("ad", "og", "cat"), lowercase=True),
    ]
    prints = {vocabulary.fingerprint for vocabulary in [VOCABULARY, *others]}
    assert len(prints) == 5
    assert all(len(text) == 64 for text in prints)
    assert Vocabulary(("a", "dog", "cat"), lowercase=True).fingerprint == VOCABULARY.fingerprint


def test_a_restricted_vocabulary_keeps_order_and_case() -> None:
    assert VOCABULARY.restricted_to({"cat", "a", "bird"}) == Vocabulary(("a", "cat"), lowercase=True)


@given(st.lists(st.text(min_size=1), min_size=1, unique=True), st.booleans())
def test_json_gives_the_same_vocabulary_back(words: list[str], lowercase: bool) -> None:
    vocabulary = Vocabulary(tuple(words), lowercase)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())), "vocabulary.json")
    assert again == vocabulary
    assert again.fingerprint == vocabulary.fingerprint


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (None, "'lowercase'"),
        (["a"], "'lowercase'"),
        ({"words": ["a"]}, "'lowercase'"),
        ({"words": ["a"], "lowercase": 1}, "'lowercase'"),
        ({"lowercase": True}, "'words'"),
        ({"words": [], "lowercase": True}, "'words'"),
        ({"words": "abc", "lowercase": True}, "'words'"),
        ({"words": ["a", 7], "lowercase": True}, r"words\[1\] is 7"),
        ({"words": ["a", ["b"]], "lowercase": True}, r"words\[1\] is \['b'\]"),
        ({"words": ["a", ""], "lowercase": True}, r"words\[1\] is ''"),
        ({"words": ["a", "b", "a"], "lowercase": True}, "'a' is listed 2 times"),
    ],
)
def test_json_that_is_not_a_vocabulary_is_an_error_that_names_the_file(obj: Any, message: str) -> None:
    with pytest.raises(VocabularyError, match=rf"^here\.json: .*{message}.*prepare-vocab"):
        Vocabulary.from_json(obj, "here.json")


def test_a_vocabulary_built_from_the_training_captions_does_not_leak() -> None:
    check_no_leak(build_vocabulary(CAPTIONS, lowercase=True, min_count=1), CAPTIONS)


def test_a_word_of_another_split_only_is_a_leak() -> None:
    leaking = build_vocabulary([*CAPTIONS, ["giraffe"]], lowercase=True, min_count=1)
    with pytest.raises(VocabularyError, match=r"1 words .*\(giraffe\)"):
        check_no_leak(leaking, iter(CAPTIONS))
    with pytest.raises(VocabularyError, match=r"6 words .*\(a, and, cat, dog, runs, \.\.\.\)"):
        check_no_leak(build_vocabulary(CAPTIONS, lowercase=True, min_count=1), [])


def test_packing_keeps_the_first_words_and_fills_the_row_with_blanks() -> None:
    token_ids, lengths = pack_token_ids([[4, 5], [1, 2, 3, 4, 5], [], [7, 8, 9]], max_words=3)
    np.testing.assert_array_equal(token_ids, [[4, 5, 0], [1, 2, 3], [0, 0, 0], [7, 8, 9]])
    np.testing.assert_array_equal(lengths, [2, 3, 0, 3])
    assert token_ids.dtype == lengths.dtype == np.int32


def test_packing_nothing_gives_no_rows() -> None:
    token_ids, lengths = pack_token_ids([], max_words=32)
    assert token_ids.shape == (0, 32)
    assert lengths.shape == (0,)


def test_importing_the_vocabulary_imports_no_nltk_and_no_gensim() -> None:
    code = "import sys, dpce_cli.core.text.vocabulary\nsys.exit(int(bool({'nltk', 'gensim'} & set(sys.modules))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
