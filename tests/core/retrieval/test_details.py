from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dpce_cli.core.errors import DataError
from dpce_cli.core.retrieval.details import DetailAccuracy, measure_details, read_details
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
    assert measure_details(_model(), store, NUMBERS) == {"number": DetailAccuracy(captions=3, accuracy=2 / 3)}


def test_captions_count_alike_however_many_words_replace_theirs() -> None:
    kinds = {"detail": [["two", "three", "five"], ["red", "blue"]]}
    store = _store(["three", "blue dog"], ["two dogs", "blue dog"], [0, 1])
    assert measure_details(_model(), store, kinds) == {"detail": DetailAccuracy(captions=2, accuracy=0.5)}


def test_captions_with_no_such_word_or_several_or_no_known_other_do_not_count() -> None:
    store = _store(["dog"], ["a dog", "two dogs three dogs"], [0, 0])
    assert measure_details(_model(), store, NUMBERS) == {"number": None}
    store = _store(["two dogs"], ["two dogs"], [0])
    assert measure_details(_model(), store, {"number": [["two", "four"]]}) == {"number": None}


def test_a_word_that_the_model_does_not_read_is_not_swapped() -> None:
    store = _store(["dog"], ["a red dog two"], [0])
    assert measure_details(_model(max_words=3), store, NUMBERS) == {"number": None}


def test_the_words_of_the_example_are_read() -> None:
    kinds = read_details(Path("examples/details.toml"))
    assert kinds["left or right"] == [["left", "right"]]
    assert kinds["man or woman"] == [["man", "woman"], ["men", "women"]]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "cannot be read as TOML"),
        (b"colour = [", "cannot be read as TOML"),
        (b"\xff", "cannot be read as TOML"),
        (b'colour = "red blue"', "colour: give a list of strings"),
        (b"colour = [1, 2]", "colour: give a list of strings"),
        (b"[colour]\nred = 1", "colour: give a list of strings"),
        (b'colour = ["red"]', "colour: give at least two words"),
        (b'colour = ["red blue", "blue green"]', "each word once"),
    ],
)
def test_a_file_that_is_no_list_of_words_is_refused(tmp_path: Path, text: bytes | None, fault: str) -> None:
    path = tmp_path / "details.toml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(DataError, match=f"details.toml: .*{fault}"):
        read_details(path)
