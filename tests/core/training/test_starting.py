from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpce_cli.core.errors import CheckpointError, ConfigError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.text.word_vectors import WordVectors
from dpce_cli.core.training.options import RunOptions
from dpce_cli.core.training.stage1 import train_stage1
from dpce_cli.core.training.starting import config_to_continue, model_to_continue
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.conftest import Trained
from tests.core.tiny import checkpoint, prepare, tiny_config, tiny_images

ROWS = "text_encoder.words.weight"
OPTIONS = RunOptions(device=torch.device("cpu"), workers=0, feature_cache=True, fresh=False)


@pytest.fixture
def start(learning_stage1: Trained, tiny_cnn: None) -> Model:
    return Model.of_checkpoint(checkpoint(learning_stage1.workspace, 1, "best"))


@pytest.fixture
def new_data(learning_stage1: Trained, tmp_path: Path) -> tuple[Workspace, PreparedDataset]:
    """Photos whose captions have a word that the model does not know."""
    workspace = Workspace(tmp_path / "workspace")
    images = tiny_images(tmp_path / "photos")
    images = [replace(image, captions=tuple(f"rex {text}" for text in image.captions)) for image in images]
    return workspace, prepare(workspace, tmp_path / "photos", images, tiny_config(None, "stage1.epochs=1"))


def test_known_words_keep_their_rows_and_new_ones_come_after_them(
    start: Model, new_data: tuple[Workspace, PreparedDataset]
) -> None:
    _, dataset = new_data
    config = config_to_continue(dataset.config, start, feature_cache=True)
    model, words = model_to_continue(start, dataset, config, None)
    known = len(start.vocabulary)
    assert words.vocabulary.words[:known] == start.vocabulary.words
    assert "rex" in words.vocabulary.words[known:]
    state = model.state_dict()
    for name, value in start.weights.items():
        kept = state[name][: known + 1] if name == ROWS else state[name]
        assert torch.equal(kept, value), name
    assert (config.model, config.image) == (start.config.model, start.config.image)
    assert config.stage1.epochs == 1


def test_a_new_word_with_a_vector_gets_the_mapped_row(
    start: Model, new_data: tuple[Workspace, PreparedDataset]
) -> None:
    _, dataset = new_data
    rows = start.weights[ROWS][1:].numpy()
    own = np.concatenate([rows, 2 * rows[:1]])
    vectors = WordVectors(
        vocabulary=replace(start.vocabulary, words=(*start.vocabulary.words, "rex")), matrix=own, coverage=1.0,
        token_coverage=None, source="test", oov="random",
    )  # fmt: skip
    if len(rows) <= rows.shape[1]:
        pytest.skip("the tiny model has fewer words than a row has numbers")
    model, words = model_to_continue(
        start, dataset, config_to_continue(dataset.config, start, feature_cache=True), vectors
    )
    row = model.state_dict()[ROWS][words.vocabulary.token_ids(["rex"])[0]].numpy()
    assert np.corrcoef(row, own[-1])[0, 1] > 0.9


def test_training_begins_with_the_model_and_resumes_only_with_it(
    start: Model, new_data: tuple[Workspace, PreparedDataset], tmp_path: Path
) -> None:
    workspace, dataset = new_data
    config = config_to_continue(dataset.config, start, feature_cache=True).with_settings(
        ["stage1.learning_rate=0.000000001"]
    )
    train_stage1(workspace, dataset, config, None, OPTIONS, Reporter(), start=start)
    trained = checkpoint(workspace, 1, "last")
    assert trained.parent == start.fingerprint
    name = "image_encoder.head.0.weight"
    torch.testing.assert_close(trained.model[name], start.weights[name], atol=1e-6, rtol=0)
    other = replace(start, weights_id="another")
    with pytest.raises(CheckpointError, match=r"cannot be continued with other settings: the model of --from"):
        train_stage1(workspace, dataset, config, None, OPTIONS, Reporter(), start=other)


def test_settings_that_the_weights_do_not_fit_are_refused(
    start: Model, new_data: tuple[Workspace, PreparedDataset]
) -> None:
    _, dataset = new_data
    config = config_to_continue(dataset.config, start, feature_cache=True).with_settings(["model.embedding_dim=7"])
    with pytest.raises(ConfigError, match=r"its weights do not fit these settings .*leave out --set"):
        model_to_continue(start, dataset, config, None)


def test_classes_learn_where_they_cannot_begin_at_the_photos(
    start: Model, new_data: tuple[Workspace, PreparedDataset]
) -> None:
    _, dataset = new_data
    assert config_to_continue(dataset.config, start, feature_cache=True).stage1.multipliers.classifier == 0
    assert config_to_continue(dataset.config, start, feature_cache=False).stage1.multipliers.classifier > 0
    products = replace(start, config=start.config.with_settings(["model.classifier_scale=0"]))
    assert config_to_continue(dataset.config, products, feature_cache=True).stage1.multipliers.classifier > 0
