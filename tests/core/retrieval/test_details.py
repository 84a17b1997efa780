from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from dpce_cli.core.retrieval.details import DetailAccuracy, measure_details
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.workspace.features import FeatureStore

WORDS = ["a", "two", "three", "five", "red", "blue", "dogs", "dog"]
NUMBERS = {"number": [["two", "three", "four", "five"]]}


def _encode(sentences: Sequence[str]) -> Any:
    """Bags of words."""
    counts = [[float(sentence.split().count(word)) for word in WORDS] for sentence in sentences]
    return F.normalize(torch.tensor(counts), dim=1).numpy()


def _model(max_words: int = 10) -> Any:
    return SimpleNamespace(
        vocabulary=Vocabulary(tuple(WORDS), lowercase=True),
        config=SimpleNamespace(text=SimpleNamespace(max_words=max_words)),
        encode_text=_encode,
    )


def _store(photos: list[str], captions: list[str], owners: list[int]) -> FeatureStore:
    """Photos are embedded as the sentence that describes them."""
    return FeatureStore(
        image_embeddings=torch.from_numpy(_encode(photos)),
        text_embeddings=torch.from_numpy(_encode([caption.lower() for caption in captions])),
        image_hubness=torch.zeros(len(photos)),
        text_hubness=torch.zeros(len(captions)),
        image_of_text=torch.tensor(owners),
        image_ids=tuple(map(str, owners)),
        image_paths=("",) * len(photos),
        identities=("",) * len(photos),
        captions=tuple(captions),
        meta={},
    )


def test_a_photo_that_shows_the_detail_prefers_its_caption() -> None:
    store = _store(["two dogs", "three dogs"], ["Two dogs", "three dogs", "five dogs"], [0, 1, 1])
    # The last caption is wrong: its photo prefers "three dogs", and "two dogs" is as similar, which counts as wrong.
    # Balanced: 1 of "two" and "three", and 1/2 of the pairs with "five".
    assert measure_details(_model(), store, NUMBERS) == {
        "number": DetailAccuracy(captions=3, accuracy=2 / 3, balanced=2 / 3)
    }


def test_captions_count_alike_however_many_words_replace_theirs() -> None:
    kinds = {"detail": [["two", "three", "five"], ["red", "blue"]]}
    store = _store(["three", "blue dog"], ["two dogs", "blue dog"], [0, 1])
    assert measure_details(_model(), store, kinds) == {
        "detail": DetailAccuracy(captions=2, accuracy=0.5, balanced=None)
    }


def test_captions_with_no_such_word_or_several_or_no_known_other_do_not_count() -> None:
    store = _store(["dog"], ["a dog", "two dogs three dogs"], [0, 0])
    assert measure_details(_model(), store, NUMBERS) == {"number": None}
    store = _store(["two dogs"], ["two dogs"], [0])
    assert measure_details(_model(), store, {"number": [["two", "four"]]}) == {"number": None}


def test_a_word_that_the_model_does_not_read_is_not_swapped() -> None:
    store = _store(["dog"], ["a red dog two"], [0])
    assert measure_details(_model(max_words=3), store, NUMBERS) == {"number": None}


def test_a_model_that_prefers_common_words_is_right_half_of_the_time_where_words_are_balanced() -> None:
    store = _store(["two dogs"] * 9, ["two dogs"] * 7 + ["three dogs"] * 2, list(range(9)))
    assert measure_details(_model(), store, {"number": [["two", "three"]]}) == {
        "number": DetailAccuracy(captions=9, accuracy=7 / 9, balanced=0.5)
    }


def test_words_that_no_caption_has_are_not_balanced() -> None:
    store = _store(["red dog"], ["red dog"], [0])
    assert measure_details(_model(), store, {"colour": [["red", "blue"]]}) == {
        "colour": DetailAccuracy(captions=1, accuracy=1.0, balanced=None)
    }
