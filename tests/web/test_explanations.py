from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dpce_cli.core.galleries.gallery import Gallery
from dpce_cli.core.galleries.indexing import index_gallery
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.explaining import explain
from dpce_cli.core.retrieval.explanation_sheet import draw_heat
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.workspace.workspace import Workspace
from dpce_cli.web.pages import Notes, Searches, build_app
from tests.web.test_pages import key

WHY = f"/why/photos/{key('red.png')}"


@pytest.fixture
def photos(tmp_path: Path, model: Model) -> Path:
    """The folder of a gallery."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    Image.fromarray(noise).save(folder / "red.png")
    index_gallery(tmp_path / "galleries" / "photos", [folder], model, model_source=None, workers=0, reporter=Reporter())
    return folder


@pytest.fixture
def page(photos: Path, model: Model) -> TestClient:
    gallery = photos.parent / "galleries" / "photos"
    return TestClient(build_app(Searches(Workspace(gallery.parents[1]), {"photos": Gallery(gallery, model)}, Notes())))


def test_the_words_come_with_their_shares(page: TestClient, photos: Path, model: Model) -> None:
    answer = page.get(f"{WHY}/words", params={"text": "Red zebra blue"})
    assert answer.status_code == 200
    expected = explain(model, Image.open(photos / "red.png"), "red zebra blue")
    assert expected.heat is not None
    found = answer.json()
    assert (found["similarity"], found["where"]) == (round(expected.similarity, 4), expected.heat.where)
    assert [word["word"] for word in found["words"]] == ["red", "zebra", "blue"]
    assert [word["is_known"] for word in found["words"]] == [True, False, True]
    shares = [word["share"] for word in found["words"]]
    assert shares == [None if word.share is None else round(word.share, 4) for word in expected.words]
    strengths = [word["strength"] for word in found["words"]]
    assert max(map(abs, strengths)) == 1
    assert strengths[1] == 0


def test_the_photo_comes_with_the_heat_that_the_core_draws(page: TestClient, photos: Path, model: Model) -> None:
    answer = page.get(f"{WHY}/heat", params={"text": "red blue"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    photo = Image.open(photos / "red.png")
    heat = explain(model, photo, "red blue").heat
    assert heat is not None
    with Image.open(io.BytesIO(answer.content)) as shown:
        assert shown.size == (1600, 1067)
        expected = draw_heat(photo.resize(shown.size, Image.Resampling.LANCZOS), heat)
        difference = np.abs(np.asarray(shown, np.int16) - np.asarray(expected, np.int16))
    assert difference.mean() < 4


def test_a_changed_photo_is_explained_anew(page: TestClient, photos: Path) -> None:
    before = page.get(f"{WHY}/words", params={"text": "red blue"}).json()
    assert page.get(f"{WHY}/words", params={"text": "red blue"}).json() == before
    Image.new("RGB", (40, 40), "blue").save(photos / "red.png")
    assert page.get(f"{WHY}/words", params={"text": "red blue"}).json() != before


@pytest.mark.parametrize("what", ["words", "heat"])
@pytest.mark.parametrize(
    ("path", "text", "status", "words"),
    [
        ("/why/none/1.A", "red", 404, "no gallery 'none'"),
        (f"/why/photos/{key('../secret.png')}", "red", 404, "no such photo"),
        (WHY, " ", 400, "give a sentence of at most 1,000 letters"),
        (WHY, "red " * 300, 400, "give a sentence of at most 1,000 letters"),
        (WHY, "zebra", 400, "the model knows none of its words"),
    ],
)
def test_what_cannot_be_explained_is_said_in_words(
    page: TestClient, what: str, path: str, text: str, status: int, words: str
) -> None:
    answer = page.get(f"{path}/{what}", params={"text": text})
    assert (answer.status_code, words in answer.text) == (status, True)


def test_a_photo_that_became_a_link_out_of_its_folder_is_not_explained(page: TestClient, photos: Path) -> None:
    Image.new("RGB", (8, 8)).save(photos.parent / "secret.png")
    (photos / "red.png").unlink()
    (photos / "red.png").symlink_to(photos.parent / "secret.png")
    assert page.get(f"{WHY}/words", params={"text": "red"}).status_code == 404
