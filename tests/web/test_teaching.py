from __future__ import annotations

import json
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from dpce_cli.web.pages import Searches, build_app
from tests.web.test_pages import key

COUNT = 6  # photos of the gallery


@pytest.fixture
def page(searches: Searches) -> TestClient:
    return TestClient(build_app(searches))


def change(page: TestClient, method: str, number: int, caption: str) -> Any:
    return page.request(method, f"/captions/photos/{key(f'{number}.png')}", content=json.dumps({"caption": caption}))


def taught(page: TestClient) -> Any:
    """What the page says when the model has finished learning."""
    assert page.post("/teaching/photos").status_code == 200
    for _ in range(600):
        found = page.get("/teaching/photos").json()
        if not found["running"]:
            return found
        time.sleep(0.1)
    raise AssertionError("the model still learns after a minute")


def test_a_caption_is_kept_and_taken_back(page: TestClient, searches: Searches) -> None:
    assert page.get(f"/captions/photos/{key('0.png')}").json() == {"captions": [], "suggested": []}
    assert change(page, "POST", 0, "rex\nin red").json()["captions"] == ["rex in red"]
    kept = searches.workspace.teaching_folder("photos") / "captions.csv"
    assert "rex in red" in kept.read_text()
    assert page.get(f"/captions/photos/{key('1.png')}").json()["suggested"] == ["rex in red"]
    assert "has the caption" in change(page, "POST", 0, "rex in red").text
    assert change(page, "DELETE", 0, "rex in red").json()["captions"] == []
    assert "rex in red" not in kept.read_text()
    assert change(page, "DELETE", 0, "rex in red").status_code == 400


def test_a_name_is_learnt_and_found_without_a_restart(page: TestClient) -> None:
    search = {"gallery": "photos", "text": "rex"}
    assert page.get("/search", params=search).status_code == 400
    for number in range(COUNT):
        change(page, "POST", number, f"rex {number}")
    before = page.get("/teaching/photos").json()
    assert (before["captions"], before["untaught"], before["running"]) == (6, 5, False)
    after = taught(page)
    assert after["message"] == "Learnt: rex (5 photos); in too few photos to be learnt: 0, 1, 2, 3, 5"
    assert after["untaught"] == 0
    assert len(page.get("/search", params=search).json()["hits"]) == COUNT


def test_nothing_to_learn_is_said(page: TestClient) -> None:
    assert "no caption is written" in taught(page)["message"]


def test_the_model_is_measured_on_captions_that_it_was_not_taught(page: TestClient) -> None:
    for number in range(4):
        change(page, "POST", number, "red")
    assert "4 photos have captions" in page.get("/quality/photos").json()["message"]
    change(page, "POST", 4, "blue and green")
    found = page.get("/quality/photos").json()
    assert (found["captions"], found["photos"]) == (5, 5)
    assert found["sentence_to_photo"]["gallery"] == COUNT
    assert 0 <= found["sentence_to_photo"]["r1"]["low"] <= found["sentence_to_photo"]["r1"]["value"]


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"caption": 1}', b'{"text": "red"}', b"[" * 3000, b"\xff"])
def test_a_body_that_holds_no_caption_is_refused(page: TestClient, body: bytes) -> None:
    answer = page.post(f"/captions/photos/{key('0.png')}", content=body)
    assert (answer.status_code, answer.text) == (400, "the request has no caption")


def test_a_caption_that_is_too_long_is_refused(page: TestClient) -> None:
    assert change(page, "POST", 0, "red " * 300).status_code == 400
    assert change(page, "POST", 0, "red " * 3000).status_code == 413


def test_captions_are_for_photos_of_the_gallery(page: TestClient) -> None:
    assert page.get(f"/captions/photos/{key('../model/config.json')}").status_code == 404
    assert page.get(f"/captions/photos/{key('9.png')}").status_code == 404
