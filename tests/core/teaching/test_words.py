from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.sharing.model_folder import load_model, save_model
from dpce_cli.core.teaching.words import learn_words, new_words
from tests.core.conftest import Trained
from tests.core.tiny import checkpoint


@pytest.fixture
def model(learning_stage1: Trained, tiny_cnn: None) -> Model:
    return Model.of_checkpoint(checkpoint(learning_stage1.workspace, 1, "best"))


def near(centre: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(count, len(centre), generator=generator) / len(centre) ** 0.5
    return F.normalize(centre + 0.8 * noise, dim=1)


def test_a_name_finds_unseen_photos_of_what_it_names_and_all_else_stays(
    model: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = torch.Generator().manual_seed(0)
    known = list(model.vocabulary.words)
    sentences = [" ".join(known[start : start + 3]) for start in range(0, len(known) - 2, 3)]
    before = model.encode_text(sentences)
    # Looks that the text encoder can name: directions of sentences.
    photos = near(torch.from_numpy(before[0]), 12, generator)
    others = F.normalize(torch.randn(200, model.dim, generator=generator), dim=1)
    captions = [f"rex {known[index % len(known)]}" for index in range(7)] + [known[0]]
    taught = learn_words(model, ["rex"], captions, [*range(7), 7], photos[:8], others, reporter=Reporter())

    np.testing.assert_array_equal(taught.encode_text(sentences), before)
    for name, value in model.weights.items():
        kept = taught.weights[name]
        assert torch.equal(kept[: len(value)] if name == "text_encoder.words.weight" else kept, value)
    scores = torch.cat([photos[8:], others]) @ torch.from_numpy(taught.encode_text(["rex"])[0])
    assert scores.topk(4).indices.sort().values.tolist() == [0, 1, 2, 3]
    assert (taught.extends, len(taught.vocabulary)) == ((model.fingerprint,), len(known) + 1)
    assert len({model.fingerprint, taught.fingerprint, model.weights_id, taught.weights_id}) == 4
    again = learn_words(model, ["rex"], captions, [*range(7), 7], photos[:8], others, reporter=Reporter())
    assert again.fingerprint == taught.fingerprint

    folder = tmp_path_factory.mktemp("taught") / "model"
    save_model(taught, folder, card="", half=False)
    read = load_model(folder)
    assert (read.fingerprint, read.extends) == (taught.fingerprint, taught.extends)
    np.testing.assert_array_equal(read.encode_text(["rex"]), taught.encode_text(["rex"]))


def test_words_are_counted_in_photos(model: Model) -> None:
    found = new_words(model.vocabulary, ["Rex rex", "rex zoë", "rex 犬", "rex"], [0, 1, 2, 2])
    assert found.enough == {"rex": 3}
    assert found.too_few == {"zoë": 1, "犬": 1}
