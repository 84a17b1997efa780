from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.views import FixedViews, WholePhoto
from dpce_cli.core.errors import DataError, QueryError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.encoding import encode_images, encode_text
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.workspace.checkpoint import Checkpoint
from tests.core.conftest import Trained
from tests.core.tiny import Recorder, checkpoint


@pytest.fixture
def model(learning_stage1: Trained, tiny_cnn: None) -> Checkpoint:
    return checkpoint(learning_stage1.workspace, 1, "best")


def embed_sentence(model: Checkpoint, sentence: str, reporter: Reporter) -> torch.Tensor:
    return torch.from_numpy(Model.of_checkpoint(model, reporter=reporter).encode_text([sentence])[0])


def embed_photo(model: Checkpoint, path: Path) -> torch.Tensor:
    return torch.from_numpy(Model.of_checkpoint(model).encode_images([path])[0])


def _embedded(model: Checkpoint, words: list[str], placements: int | None) -> torch.Tensor:
    ids = model.vocabulary.token_ids(words)
    token_ids = torch.zeros(1, model.config.text.max_words, dtype=torch.int32)
    token_ids[0, : len(ids)] = torch.tensor(ids)
    return encode_text(Model.of_checkpoint(model).text_encoder, token_ids, placements=placements)[0]


def test_a_sentence_is_embedded_as_its_words_in_all_placements(model: Checkpoint) -> None:
    reporter = Recorder()
    embedding = embed_sentence(model, "A mosaic, of x1!", reporter)

    torch.testing.assert_close(embedding, _embedded(model, ["a", "mosaic", "of", "x1"], None))
    torch.testing.assert_close(embedding.norm(), torch.tensor(1.0))
    assert reporter.warnings == []


def test_a_model_without_position_shift_sees_a_sentence_left_aligned(model: Checkpoint) -> None:
    config = replace(model.config, model=replace(model.config.model, position_shift=False))
    embedding = embed_sentence(replace(model, config=config), "a mosaic", Recorder())

    torch.testing.assert_close(embedding, _embedded(model, ["a", "mosaic"], 1))


def test_unknown_words_are_dropped_and_named(model: Checkpoint) -> None:
    reporter = Recorder()
    embedding = embed_sentence(model, "a Zebra mosaic qwv", reporter)

    torch.testing.assert_close(embedding, _embedded(model, ["a", "mosaic"], None))
    assert reporter.warnings == ["unknown words are ignored: zebra, qwv"]


def test_a_model_that_tells_cases_apart_does_so_in_queries(model: Checkpoint) -> None:
    sensitive = replace(model, vocabulary=replace(model.vocabulary, lowercase=False))
    reporter = Recorder()
    embed_sentence(sensitive, "A mosaic", reporter)

    assert reporter.warnings == ["unknown words are ignored: A"]


def test_words_beyond_the_last_position_are_not_read(model: Checkpoint) -> None:
    reporter = Recorder()
    words = ["many"] * 3 + ["mosaic"] * 7 + ["a"] * 490
    embedding = embed_sentence(model, " ".join(words), reporter)

    torch.testing.assert_close(embedding, _embedded(model, words[:10], None))
    assert reporter.warnings == ["only the first 10 of 500 known words are read"]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("zebra, qwv", "query 'zebra, qwv': the model knows none of its words (zebra, qwv); use words of the training"),
        ("", "query '': the model knows none of its words; use words"),
        (" \t...", "query ' \\t...': the model knows none of its words; use words"),
    ],
)
def test_a_sentence_without_a_known_word_is_refused(model: Checkpoint, sentence: str, expected: str) -> None:
    with pytest.raises(QueryError) as refused:
        embed_sentence(model, sentence, Recorder())
    assert str(refused.value).startswith(expected)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_photo_is_embedded_in_the_views_that_the_model_was_trained_for(
    model: Checkpoint, photos: Path, mirror: bool
) -> None:
    config = replace(model.config, image=replace(model.config.image, mirror=mirror))
    model = replace(model, config=config)
    views = FixedViews(config.image)(load_image(photos / "val0.png"), 0)

    assert len(views) == (2 if mirror else 1)
    torch.testing.assert_close(
        embed_photo(model, photos / "val0.png"), encode_images(Model.of_checkpoint(model).image_encoder, views[None])[0]
    )


def test_a_whole_photo_is_embedded_where_the_model_is_tested_on_it(model: Checkpoint, photos: Path) -> None:
    config = replace(model.config, image=replace(model.config.image, test_view="full"))
    views = WholePhoto(config.image)(load_image(photos / "val0.png"), 0)
    assert views.shape[2:] == (40, 40)
    whole = embed_photo(replace(model, config=config), photos / "val0.png")
    torch.testing.assert_close(whole, encode_images(Model.of_checkpoint(model).image_encoder, views[None])[0])
    assert not torch.allclose(whole, embed_photo(model, photos / "val0.png"), atol=1e-3)


def test_a_photo_that_cannot_be_read_is_refused(model: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.png: cannot be read \(No such file or directory\)"):
        embed_photo(model, tmp_path / "missing.png")


def test_an_unknown_word_is_named_with_the_known_words_of_nearly_the_same_spelling(model: Checkpoint) -> None:
    word = max(model.vocabulary.words, key=len)
    reporter = Recorder()
    embed_sentence(model, f"{word} {word}s", reporter)
    (warning,) = reporter.warnings
    assert warning.startswith(f"unknown words are ignored: {word}s (known: {word}")
    with pytest.raises(QueryError, match=rf"knows none of its words \({word}s \(known: {word}"):
        embed_sentence(model, f"{word}s", reporter)
