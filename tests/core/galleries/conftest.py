from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpce_cli.core.galleries.gallery import open_gallery
from dpce_cli.core.galleries.indexing import IndexResult, index_gallery
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.hubness import Bank
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.retrieval.relevance import Relevances
from tests.core.tiny import tiny_config

LONG_AGO = 10**9
"""Modification time in seconds of files that no longer change."""


class ColourModel:
    """Embeds a photo by its mean colour, and a sentence by the colours that it names; counts what it embeds."""

    dim = 3
    extends: tuple[str, ...] = ()

    def __init__(self, fingerprint: str = "colours", bank: Bank | None = None) -> None:
        self.relevances: Relevances | None = None
        self.bank, self.load_bank = bank, (lambda: bank) if bank else None
        self.fingerprint, self.name, self.config = fingerprint, f"model {fingerprint}", tiny_config(None)
        self.photos = self.sentences = 0

    def encode_views(self, views: Tensor) -> Tensor:
        self.photos += len(views)
        return torch.nn.functional.normalize(views.float().mean(dim=(1, 3, 4)), dim=1)

    def encode_images(self, photos: Sequence[Path]) -> npt.NDArray[np.float32]:
        rows = [np.asarray(Image.open(photo).convert("RGB"), np.float32).mean(axis=(0, 1)) for photo in photos]
        return np.stack([row / np.linalg.norm(row) for row in rows])

    def knows(self, sentence: str) -> bool:
        return bool({"red", "green", "blue"} & set(sentence.split()))

    def encode_text(self, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
        self.sentences += len(sentences)
        rows = np.array([[word in text.split() for word in ("red", "green", "blue")] for text in sentences], np.float32)
        rows = rows.reshape(-1, 3)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def as_model(self) -> Model:
        return cast(Model, self)


class Notes(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class Place:
    """A folder of photos and the gallery of it."""

    def __init__(self, folder: Path) -> None:
        self.photos, self.gallery = folder / "photos", folder / "galleries" / "photos"
        self.photos.mkdir()
        self.model, self.notes = ColourModel(), Notes()

    def add(self, name: str, colour: tuple[int, int, int] = (255, 0, 0), *, age: int = 0, **how: Any) -> Path:
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), colour).save(path, **how)
        os.utime(path, (LONG_AGO + age,) * 2)
        return path

    def index(self, *roots: Path, model: ColourModel | None = None, **how: Any) -> IndexResult:
        self.notes.warnings.clear()
        return index_gallery(
            self.gallery, roots or [self.photos], (model or self.model).as_model(),
            **{"model_source": None, "workers": 0, "reporter": self.notes, **how},
        )  # fmt: skip

    def content(self, folder: Path | None = None) -> dict[str, Any]:
        """Path -> embedding, date, or why there is none."""
        with closing(open_gallery(folder or self.gallery)) as catalogue:
            rows = catalogue.embeddings(catalogue.row_count())
            return {
                os.fsdecode(path): (*rows[row, :-1].round(5).tolist(), date)
                if row is not None
                else reason or "to embed"
                for path, row, date, reason in catalogue.database.execute(
                    "SELECT path, row, date, coalesce(items.problem, contents.problem) FROM items "
                    "LEFT JOIN contents ON contents.id = content"
                )
            }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
