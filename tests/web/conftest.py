from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpce_cli.core.config import Config
from dpce_cli.core.galleries.gallery import load_gallery
from dpce_cli.core.galleries.indexing import index_gallery
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.sharing.finding import find_model
from dpce_cli.core.sharing.model_folder import save_model
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.workspace.workspace import Workspace
from dpce_cli.web.pages import Notes, Searches
from tests.core.tiny import tiny_cnn, tiny_config


def untrained(config: Config) -> Model:
    """A model of random weights that knows three colours."""
    torch.manual_seed(0)
    both = DualEncoder(config, vocabulary_size=3, word_dim=config.model.word_dim, instances=1)
    both.image_encoder.reset_parameters(generator_for("image"), None)
    both.text_encoder.reset_parameters(generator_for("text"))
    return Model(
        name="tiny",
        config=config,
        vocabulary=Vocabulary(("red", "green", "blue"), lowercase=True),
        word_dim=config.model.word_dim,
        weights_id="tiny",
        load_weights=lambda: {k: v for k, v in both.state_dict().items() if not k.startswith("shared_classifier.")},
    )


def searches_of(model: Model, folder: Path) -> Searches:
    """A gallery of six photos in a workspace, and the model beside it."""
    workspace, photos, rng = Workspace(folder), folder / "my photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(6):
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    source = str(folder / "model")
    save_model(model, Path(source), card="# tiny\n", half=False)
    index_gallery(
        workspace.gallery_folder("photos"), [photos], find_model(source, workspace),
        model_source=source, workers=0, reporter=Reporter(),
    )  # fmt: skip
    notes = Notes()
    return Searches(workspace, {"photos": load_gallery(workspace, "photos", notes)}, notes)


@pytest.fixture
def model() -> Iterator[Model]:
    with tiny_cnn():
        yield untrained(tiny_config(None))


@pytest.fixture
def searches(tmp_path: Path, model: Model) -> Searches:
    return searches_of(model, tmp_path)
