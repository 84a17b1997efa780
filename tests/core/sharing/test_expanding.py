from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpce_cli.core.errors import VocabularyError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.sharing.expanding import with_more_words
from dpce_cli.core.workspace.checkpoint import Checkpoint


@pytest.fixture
def model(trained: Checkpoint) -> Model:
    return Model.of_checkpoint(trained)


def write_vectors(path: Path, model: Model, *further: str) -> Path:
    """The model's own rows as the vectors of its words, and random ones for further words."""
    generator = np.random.default_rng(0)
    rows = model.weights["text_encoder.words.weight"][1:].numpy()
    vectors = {word: generator.normal(size=rows.shape[1]) for word in further}
    lines = {**dict(zip(model.vocabulary.words, rows, strict=True)), **vectors}
    path.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in lines.items()), encoding="utf-8")
    return path


def test_words_of_a_file_are_added_and_all_else_stays(model: Model, tmp_path: Path) -> None:
    path = write_vectors(tmp_path / "v.txt", model, "frisbee", "New_York", ",", "Kite", "kite", "zebra")
    larger = with_more_words(model, path, len(model.vocabulary) + 5, Reporter())
    assert larger.vocabulary.words == (*model.vocabulary.words, "frisbee", "kite")
    known = " ".join(model.vocabulary.words[:3])
    np.testing.assert_array_equal(larger.encode_text([known]), model.encode_text([known]))
    assert not np.allclose(larger.encode_text([f"{known} frisbee"]), larger.encode_text([f"{known} kite"]))
    assert larger.extends == (model.fingerprint,)
    assert larger.fingerprint != model.fingerprint


def test_a_file_without_new_words_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"v\.txt: the model knows all its words; give a larger file"):
        with_more_words(model, write_vectors(tmp_path / "v.txt", model), 10, Reporter())
