"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from dpce_cli.core.galleries.gallery import Gallery
from dpce_cli.core.galleries.indexing import index_gallery
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval import explaining
from dpce_cli.core.retrieval.explaining import Explanation, Heat, Word
from dpce_cli.core.workspace.workspace import Workspace
from dpce_cli.web.pages import Notes, Searches, build_app
from dpce_cli.web.safety import Guard
from tests.core.galleries.conftest import LONG_AGO, Place
from tests.web.serving import serving
from tests.web.test_pages import HOSTILE, PhotoModel

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of the page over a gallery of three photos."""
    place = Place(tmp_path)
    for name, colour in (("red.png", (255, 0, 0)), ("blue.png", (0, 0, 255)), (HOSTILE, (0, 255, 0))):
        place.add(name, colour)
    place.index()
    searches = Searches(
        Workspace(place.gallery.parents[1]), {"photos": Gallery(place.gallery, PhotoModel().as_model())}, Notes()
    )
    with served(searches) as address:
        yield address


@contextmanager
def served(searches: Searches) -> Iterator[str]:
    with serving(lambda host: Guard(build_app(searches), hosts=frozenset({host}), token="")) as host:
        yield f"http://{host}/"


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    with opened(address) as page:
        yield page


@contextmanager
def opened(address: str) -> Iterator[Page]:
    """At a phone's width; no problem may be reported."""
    if CHROMIUM is None:
        if "CI" in os.environ:
            pytest.fail("Chromium is missing; .ci/run installs it")
        pytest.skip("needs Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("response", lambda answer: problems.append(f"{answer.status} {answer.url}") if not answer.ok else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.goto(address)
        yield page
        browser.close()
        assert problems == []


def test_a_person_searches_looks_and_goes_back_with_the_keyboard_alone(page: Page) -> None:
    page.keyboard.type("red")  # the box has the focus
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("3 photos")
    first = page.locator("#hits button").first
    expect(first).to_have_accessible_name("1: red.png")
    assert "text=red" in page.url

    first.focus()
    page.keyboard.press("Enter")
    large = page.get_by_role("dialog", name="Photo")
    expect(large.locator(".name")).to_have_text("red.png")
    page.keyboard.press("ArrowRight")
    expect(large.locator(".name")).not_to_have_text("red.png")
    page.keyboard.press("ArrowLeft")
    expect(large.locator("img")).to_have_js_property("complete", value=True)
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()
    expect(first).to_be_focused()

    page.locator("#text").fill("blue")
    page.keyboard.press("Enter")
    expect(page.locator("#hits button").first).to_have_accessible_name("1: blue.png")
    page.go_back()
    expect(page.locator("#text")).to_have_value("red")
    expect(page.locator("#hits button").first).to_have_accessible_name("1: red.png")


def test_terms_photos_like_one_and_a_shared_address(page: Page) -> None:
    page.goto(page.url.split("?")[0] + "?text=green")
    expect(page.locator("#hits button").first).to_have_accessible_name(f"1: {HOSTILE}")
    page.locator("#term").fill("3:blue")
    page.get_by_label("Photos should show this, too").click()
    expect(page.locator("#hits button").first).to_have_accessible_name("1: blue.png")
    page.get_by_label("Remove the term 3:blue").click()
    expect(page.locator("#hits button").first).to_have_accessible_name(f"1: {HOSTILE}")

    page.locator("#hits button").nth(1).click()
    name = page.locator("#large .name").inner_text()
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#hits button").first).to_have_accessible_name(f"1: {name}")


def test_a_chosen_photo_finds_photos_at_a_phones_width(page: Page, tmp_path: Path) -> None:
    page.locator("#file").set_input_files(tmp_path / "photos" / "blue.png")
    expect(page.locator("#hits button").first).to_have_accessible_name("1: blue.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_why_a_photo_was_found_is_shown_and_hidden_again(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((12, 12), np.float32)
    values[0, 0] = 1
    words = {"red": 0.2, "zebra": None}
    made = Explanation(
        sentence="red zebra",
        similarity=0.4,
        words=tuple(Word(text=text, share=share, is_known=share is not None) for text, share in words.items()),
        heat=Heat(values=values, part=(0.0, 0.0, 1.0, 1.0)),
    )
    monkeypatch.setattr(explaining, "explain", lambda model, photo, sentence: made)
    page.goto(page.url.split("?")[0] + "?text=red zebra")
    page.locator("#hits button").first.click()
    large = page.get_by_role("dialog", name="Photo")
    button, image, text = (
        large.get_by_role("button", name="Why this photo?"),
        large.locator("img"),
        large.locator(".why"),
    )
    expect(text).to_be_hidden()

    button.click()
    expect(text).to_have_text("red zebra Ignored: zebra. Strongest part: upper left.")
    expect(image).to_have_attribute("src", re.compile(r"^/why/photos/.*/heat\?text=red\+zebra$"))
    expect(image).to_have_js_property("complete", value=True)
    assert image.evaluate("one => one.naturalWidth") > 0
    expect(text.get_by_text("red")).to_have_css("background-color", "rgba(240, 120, 20, 0.75)")

    button.click()
    expect(text).to_be_hidden()
    expect(image).to_have_attribute("src", re.compile("^/photo/photos/large/"))
    button.click()
    page.keyboard.press("ArrowRight")  # the next photo comes without its heat
    expect(text).to_be_hidden()
    expect(button).to_have_attribute("aria-pressed", "false")

    large.get_by_role("button", name="More like this").click()
    page.locator("#hits button").first.click()
    expect(button).to_be_hidden()  # there is no sentence to explain


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_people_out(page: Page, scheme: Literal["light", "dark"]) -> None:
    def check(what: str) -> None:
        found = Axe().run(page)
        assert not found.violations_count, f"{what}: {found.generate_report()}"

    page.emulate_media(color_scheme=scheme)
    expect(page.locator("#state")).to_contain_text("3 photos")
    check("start")
    page.locator("#text").fill("green")
    page.keyboard.press("Enter")
    expect(page.locator("#hits button")).to_have_count(3)
    page.locator("#term").fill("3:blue")
    page.get_by_label("Photos should show this, too").click()
    expect(page.locator("#hits button").first).to_have_accessible_name("1: blue.png")
    check("results")
    page.set_viewport_size({"width": 1280, "height": 800})
    check("results on a desktop")
    page.locator("#hits button").first.click()
    expect(page.get_by_role("dialog", name="Photo")).to_be_visible()
    check("large view")
    page.get_by_label("What does this photo show?").fill("red rex")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Remove the caption red rex")).to_be_visible()
    check("large view with a caption")
    page.keyboard.press("Escape")
    page.get_by_role("region", name="Teaching").get_by_text("You have written").click()
    expect(page.get_by_role("button", name="Teach the model")).to_be_visible()
    check("teaching")


@pytest.fixture
def many(page: Page, tmp_path: Path) -> Page:
    """The first results of a search for red in 70 photos."""
    photos = tmp_path / "photos"
    for number in range(67):
        path = photos / f"{number}.png"
        Image.new("RGB", (60 + 2 * number, 100), (255, number, 0)).save(path)
        os.utime(path, (LONG_AGO,) * 2)
    model = PhotoModel().as_model()
    index_gallery(tmp_path / "galleries" / "photos", [photos], model, model_source=None, workers=0, reporter=Reporter())
    page.locator("#text").fill("red")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("The first 60 photos")
    return page


def test_the_next_photo_after_the_last_that_is_loaded_is_loaded(many: Page) -> None:
    many.locator("#hits button").first.click()
    name = many.locator("#large .name")
    first = name.inner_text()
    for _ in range(60):
        many.keyboard.press("ArrowRight")
    expect(many.locator("#status")).to_have_text("70 photos")
    expect(name).not_to_have_text(first)
    many.keyboard.press("ArrowLeft")
    many.keyboard.press("Escape")
    expect(many.locator("#hits button").nth(59)).to_be_focused()


def test_scrolling_loads_more_photos_in_rows_of_one_height_that_cut_nothing_off(many: Page) -> None:
    page = many
    page.locator("#hits img").last.scroll_into_view_if_needed()
    expect(page.locator("#status")).to_have_text("70 photos")
    expect(page.get_by_role("button", name="More results")).to_be_hidden()

    page.evaluate("scrollTo(0, 0)")
    expect(page.locator("#hits img").nth(3)).to_have_js_property("complete", value=True)
    boxes = page.locator("#hits img").evaluate_all(
        "all => all.slice(0, 4).map(one => [one.y, one.width, one.height, one.naturalWidth / one.naturalHeight])"
    )
    for top, width, height, ratio in boxes:
        assert width / height == pytest.approx(ratio, rel=0.02)
        assert all(row[2] == pytest.approx(height, abs=0.5) for row in boxes if row[0] == top)


def test_a_person_captions_photos_undoes_teaches_and_finds_the_new_name(searches: Searches) -> None:
    with served(searches) as address, opened(address) as page:
        page.goto(address + "?text=red")
        large, box = page.get_by_role("dialog", name="Photo"), page.get_by_label("What does this photo show?")
        page.locator("#hits button").first.click()
        box.fill("a mistake")
        box.press("Enter")
        page.get_by_role("button", name="Remove the caption a mistake").click()
        expect(large.get_by_role("list", name="Captions", exact=True).locator("li")).to_have_count(0)
        box.fill("red rex")
        box.press("ArrowLeft")  # moves in the text, not to another photo
        box.press("Enter")
        expect(page.get_by_role("button", name="Remove the caption red rex")).to_be_visible()
        for _ in range(5):
            name = large.locator(".name").inner_text()
            page.get_by_role("button", name="Next").click()
            expect(large.locator(".name")).not_to_have_text(name)
            page.get_by_role("button", name="Accept the caption red rex").click()
            expect(page.get_by_role("button", name="Remove the caption red rex")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("Escape")

        teach = page.get_by_role("region", name="Teaching")
        expect(teach).to_contain_text("You have written 6 captions. 5 of them can still be taught")
        teach.get_by_text("You have written").click()
        teach.get_by_role("button", name="Teach the model").click()
        expect(teach).to_contain_text("Learnt: rex (5 photos)", timeout=60_000)
        page.locator("#text").fill("rex")
        page.keyboard.press("Enter")
        expect(page.locator("#hits button")).to_have_count(6)
        teach.get_by_role("button", name="How good is it on my photos?").click()
        expect(teach).to_contain_text("1 photos have captions that the model was not trained on")
