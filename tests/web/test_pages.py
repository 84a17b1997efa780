from __future__ import annotations

import base64
import io
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dpce_cli.core.galleries.gallery import Gallery
from dpce_cli.core.galleries.indexing import index_gallery
from dpce_cli.core.workspace.workspace import Workspace
from dpce_cli.web.pages import Notes, Searches, build_app
from tests.core.galleries.conftest import ColourModel, Place

HOSTILE = "<img src=x onerror=alert(1)>.png"


class PhotoModel(ColourModel):
    """Embeds open photos, too."""

    def encode_images(self, photos: Sequence[Path | Image.Image]) -> npt.NDArray[np.float32]:
        opened = [one if isinstance(one, Image.Image) else Image.open(one) for one in photos]
        rows = [np.asarray(one.convert("RGB"), np.float32).mean(axis=(0, 1)) for one in opened]
        return np.stack([row / np.linalg.norm(row) for row in rows])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.add("red.png", (255, 0, 0))
    place.add("blue.png", (0, 0, 255))
    place.add(HOSTILE, (0, 255, 0))
    place.index()
    return place


@pytest.fixture
def photos(place: Place) -> Path:
    return place.photos


@pytest.fixture
def page(place: Place) -> TestClient:
    searches = Searches(
        Workspace(place.gallery.parents[1]), {"photos": Gallery(place.gallery, PhotoModel().as_model())}, Notes()
    )
    return TestClient(build_app(searches))


def key(path: str, root: int = 1) -> str:
    return f"{root}.{base64.urlsafe_b64encode(os.fsencode(path)).decode().rstrip('=')}"


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(file, "PNG")
    return file.getvalue()


def names(page: TestClient, **params: str | int) -> list[str]:
    answer = page.get("/search", params={"gallery": "photos", **params})
    assert answer.status_code == 200, answer.text
    return [hit["name"] for hit in answer.json()["hits"]]


def test_a_sentence_a_photo_of_the_gallery_and_a_dropped_photo_find_photos(page: TestClient) -> None:
    assert names(page, text="red")[0] == "red.png"
    assert names(page, like=key("blue.png"))[0] == "blue.png"
    dropped = page.post("/search", params={"gallery": "photos"}, content=png("blue"))
    assert dropped.json()["hits"][0]["name"] == "blue.png"
    assert names(page, text="red", plus="3:blue", minus="red")[0] == "blue.png"


def test_results_come_in_portions(page: TestClient) -> None:
    whole = names(page, text="red")
    assert names(page, text="red", count=1) == whole[:1]
    assert names(page, text="red", first=1, count=2) == whole[1:]


def test_a_hostile_file_name_stays_text(page: TestClient) -> None:
    answer = page.get("/search", params={"gallery": "photos", "text": "green"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["hits"][0]["name"] == HOSTILE
    shown = page.get(f"/photo/photos/small/{answer.json()['hits'][0]['key']}")
    assert shown.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(("platform", "command"), [("linux", ["xdg-open", ""]), ("darwin", ["open", "-R", "/a.png"])])
def test_the_command_that_shows_a_photo_is_quoted_for_the_shell(
    place: Place, page: TestClient, monkeypatch: pytest.MonkeyPatch, platform: str, command: list[str]
) -> None:
    place.add("it's; $(here)/a.png")
    place.index()
    monkeypatch.setattr(sys, "platform", platform)
    hits = page.get("/search", params={"gallery": "photos", "text": "red"}).json()["hits"]
    (shown,) = [shlex.split(hit["reveal"]) for hit in hits if hit["name"] == "a.png"]
    assert shown == [*command[:-1], f"{place.photos}/it's; $(here){command[-1]}"]


def test_photos_are_encoded_again_without_their_metadata(page: TestClient, photos: Path) -> None:
    large = Image.new("RGB", (900, 600), "red")
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    large.save(photos / "red.png", exif=exif)
    shown = page.get(f"/photo/photos/small/{key('red.png')}")
    assert b"secret" not in shown.content
    picture = Image.open(io.BytesIO(shown.content))
    assert (picture.format, picture.size, dict(picture.getexif())) == ("JPEG", (400, 267), {})


@pytest.mark.parametrize(
    "asked",
    [
        key("../secret.png"), key("/etc/passwd"), key("none.png"), key("red.png", 2), "1", "x.y", "1.%00",
        "999999999.A",
    ],
)  # fmt: skip
def test_only_photos_of_the_gallery_are_given_out(page: TestClient, tmp_path: Path, asked: str) -> None:
    (tmp_path / "secret.png").write_bytes(png("red"))
    assert page.get(f"/photo/photos/large/{asked}").status_code == 404
    assert page.get("/search", params={"gallery": "photos", "like": asked}).status_code == 404


def test_a_photo_that_became_a_link_out_of_its_folder_or_a_pipe_is_not_given_out(
    page: TestClient, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(png("red"))
    (photos / "red.png").unlink()
    (photos / "red.png").symlink_to(tmp_path / "secret.png")
    assert page.get(f"/photo/photos/large/{key('red.png')}").status_code == 404
    (photos / "blue.png").unlink()
    os.mkfifo(photos / "blue.png")
    assert page.get(f"/photo/photos/large/{key('blue.png')}").status_code == 410


@pytest.mark.parametrize(
    ("params", "status", "words"),
    [
        ({"gallery": "none", "text": "red"}, 404, "no gallery 'none'"),
        ({"gallery": "photos", "text": " "}, 400, "describe a photo"),
        ({"gallery": "photos", "text": "red", "count": "-1"}, 400, "is no number"),
        ({"gallery": "photos", "text": "red", "count": "999999"}, 400, "at most 1,000"),
        ({"gallery": "photos", "text": "red", "plus": "image:/etc/passwd"}, 400, "terms of the page are sentences"),
        ({"gallery": "photos", "text": "red", "plus": "0:blue"}, 400, "the weight must be above 0"),
    ],
)
def test_what_cannot_be_searched_is_said_in_words(
    page: TestClient, params: dict[str, str], status: int, words: str
) -> None:
    answer = page.get("/search", params=params)
    assert (answer.status_code, words in answer.text) == (status, True)


def test_the_state_counts_photos_and_names_what_cannot_be_read(page: TestClient) -> None:
    (one,) = page.get("/state").json()["galleries"]
    assert (one["name"], one["items"], one["pending"], one["problems"]) == ("photos", 3, 0, 0)


def test_the_page_names_galleries_of_photos_first(place: Place) -> None:
    (place.photos / "labels.txt").write_text("a red square\n")
    labels = place.gallery.parent / "labels"
    index_gallery(
        labels, [place.photos / "labels.txt"], PhotoModel().as_model(),
        model_source=None, workers=0, reporter=Notes(),
    )  # fmt: skip
    galleries = {folder.name: Gallery(folder, PhotoModel().as_model()) for folder in (labels, place.gallery)}
    page = TestClient(build_app(Searches(Workspace(place.gallery.parents[1]), galleries, Notes())))
    assert [one["name"] for one in page.get("/state").json()["galleries"]] == ["photos", "labels"]


def test_many_searches_at_once_are_all_answered(page: TestClient) -> None:
    found: list[str] = []

    def search(text: str) -> None:
        found.append(names(page, text=text)[0])

    threads = [threading.Thread(target=search, args=(("red", "blue")[number % 2],)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["blue.png"] * 50 + ["red.png"] * 50


def test_the_page_has_no_script_or_style_in_its_text(page: TestClient) -> None:
    text = page.get("/").text
    assert "<script>" not in text
    assert "<style" not in text
    assert "onclick" not in text
    for name in ("page.js", "style.css", "icon.svg"):
        assert page.get(f"/static/{name}").status_code == 200
        assert f"/static/{name}" in text
    assert page.get("/static/..%2Fpages.py").status_code == 404
