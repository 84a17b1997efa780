from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from dpce_cli.core.data.images import load_image
from dpce_cli.core.data.views import views_in_testing
from dpce_cli.core.errors import QueryError
from dpce_cli.core.retrieval.explaining import Heat, explain
from dpce_cli.core.retrieval.model import Model
from tests.core.conftest import Trained
from tests.core.tiny import Recorder, checkpoint

SENTENCE = "a mosaic of x1"


@pytest.fixture
def model(learning_stage1: Trained, tiny_cnn: None) -> Model:
    return Model.of_checkpoint(checkpoint(learning_stage1.workspace, 1, "best"), reporter=Recorder())


@pytest.fixture
def photo(photos: Path) -> Image.Image:
    return load_image(photos / "val0.png")


def similarity(model: Model, photo: Image.Image, sentence: str) -> float:
    return float(model.encode_images([photo])[0] @ model.encode_text([sentence])[0])


def with_image(model: Model, **changes: object) -> Model:
    return replace(model, config=replace(model.config, image=replace(model.config.image, **changes)))  # type: ignore[arg-type]


def test_a_words_share_is_the_similarity_minus_that_of_the_sentence_without_it(
    model: Model, photo: Image.Image
) -> None:
    found = explain(model, photo, f"{SENTENCE} a")
    whole = similarity(model, photo, "a mosaic of x1 a")
    shorter = ["mosaic of x1 a", "a of x1 a", "a mosaic x1 a", "a mosaic of a", "a mosaic of x1"]
    assert found.similarity == pytest.approx(whole, abs=1e-5)
    assert [word.text for word in found.words] == ["a", "mosaic", "of", "x1", "a"]
    expected = [whole - similarity(model, photo, text) for text in shorter]
    assert [word.share for word in found.words] == pytest.approx(expected, abs=1e-5)
    assert len({round(share, 4) for share in expected}) > 3


def test_the_share_of_the_only_word_is_the_whole_similarity(model: Model, photo: Image.Image) -> None:
    found = explain(model, photo, "mosaic")
    (word,) = found.words
    assert word.share == pytest.approx(found.similarity)


def test_words_that_are_not_read_have_no_share(model: Model, photo: Image.Image) -> None:
    found = explain(model, photo, "zebra mosaic " + "a " * 12)
    assert [word.share is None for word in found.words] == [True, *[False] * 10, *[True] * 3]
    assert [word.is_known for word in found.words] == [False, *[True] * 13]
    assert found.similarity == pytest.approx(similarity(model, photo, "mosaic" + " a" * 9), abs=1e-5)


@pytest.mark.parametrize("sentence", ["zebra", "", "..."])
def test_a_sentence_without_a_known_word_is_refused(model: Model, photo: Image.Image, sentence: str) -> None:
    with pytest.raises(QueryError, match="knows none of its words"):
        explain(model, photo, sentence)


@pytest.mark.parametrize("mirror", [False, True])
def test_heat_is_what_leaving_out_each_window_in_all_views_takes_from_the_sentences_own_part(
    model: Model, photo: Image.Image, mirror: bool
) -> None:
    model = with_image(model, mirror=mirror)
    heat = explain(model, photo, SENTENCE).heat
    assert heat is not None
    assert heat.values.shape == (12, 12)

    encoder = model.image_encoder
    views = views_in_testing(model.config.image)(photo, 0)
    assert len(views) == (2 if mirror else 1)
    text, common = model.encode_text([SENTENCE])[0], model.common_text
    own = text - (text @ common) * common
    block_of_cell = (2 * np.arange(16) + 1) * 12 // 32  # of 16 x 16 cells, which bn1 gives

    def embed(rows: range, columns: range) -> NDArray[np.float32]:
        """The photo without the cells of these rows and columns of blocks."""
        is_out = np.isin(block_of_cell, rows)[:, None] & np.isin(block_of_cell, columns)
        total = torch.zeros(1, model.dim)
        for view, out in zip(views, (is_out, is_out[:, ::-1].copy()), strict=False):
            hook = encoder.backbone.get_submodule("bn1").register_forward_hook(
                lambda module, given, maps, out=out: maps.masked_fill(torch.from_numpy(out), 0)
            )
            with torch.inference_mode():
                total += encoder(view[None])
            hook.remove()
        embedding: NDArray[np.float32] = F.normalize(total, dim=1)[0].numpy()
        return embedding

    plain = embed(range(0), range(0))
    for row, column in ((0, 0), (4, 10), (11, 6)):
        drops = [
            (plain - embed(range(top, top + 4), range(left, left + 4))) @ own
            for top in range(row - 3, row + 1)
            for left in range(column - 3, column + 1)
        ]
        assert heat.values[row, column] == pytest.approx(np.mean(drops), abs=1e-5)


@pytest.mark.parametrize(
    ("row", "column", "where"),
    [(0, 0, "upper left"), (2, 2, "middle"), (3, 5, "right"), (5, 2, "lower"), (0, 3, "upper"), (5, 5, "lower right")],
)
def test_the_strongest_block_is_named_by_its_third_of_the_photo(row: int, column: int, where: str) -> None:
    values = np.zeros((6, 6), np.float32)
    values[row, column] = 1
    heat = Heat(values=values, part=(0.0, 0.0, 1.0, 1.0))
    assert (heat.strongest, heat.where) == ((row, column), where)


def test_a_block_of_the_central_crop_is_named_by_its_place_in_the_photo() -> None:
    values = np.zeros((6, 6), np.float32)
    values[0, 0] = 1
    assert Heat(values=values, part=(0.4, 0.1, 0.6, 0.9)).where == "upper"


def test_where_no_block_speaks_for_the_sentence_none_is_the_strongest() -> None:
    assert Heat(values=np.full((6, 6), -0.1, np.float32), part=(0.0, 0.0, 1.0, 1.0)).where == "none"
