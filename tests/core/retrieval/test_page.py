from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from dpce_cli.core.errors import QueryError, WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.hits import Answers, Hit, Kind
from dpce_cli.core.retrieval.page import write_page
from dpce_cli.core.retrieval.thumbnails import Thumbnails

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>&amp;\x1b[31m\u202egnp.'
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "main", "ol", "li"),
    *("figure", "div", "img", "figcaption", "p", "span"),
}


def hit(rank: int = 1, path: str = "red.png", caption: str = "A red square .", **more: str | bool) -> Hit:
    return Hit(rank=rank, score=0.5, image_id="7", path=path, caption=caption, **more)  # type: ignore[arg-type]


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.raw = text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    Image.new("RGB", (800, 400), "red").save(root / "red.png")
    return root


def page(
    root: Path, hits: Sequence[Hit], query: str | Path = "a query", kind: Kind = "photos"
) -> tuple[Page, Thumbnails]:
    thumbnails = Thumbnails(Reporter())
    answers = Answers(title="scenes", query=query, kind=kind, hits=hits, root=root)
    write_page(root / "page.html", answers, thumbnails)
    return Page((root / "page.html").read_text(encoding="utf-8")), thumbnails


def pictures(found: Page) -> list[Image.Image]:
    sources = [str(attributes["src"]) for attributes in found.of("img")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def test_a_page_shows_each_photo_with_its_rank_score_caption_path_and_date(root: Path) -> None:
    found, _ = page(root, [hit(1), hit(2, caption="", date="2024-05-01T10:30:01")])
    assert [image.size for image in pictures(found)] == [(480, 240), (480, 240)]
    assert [attributes["alt"] for attributes in found.of("img")] == ["A red square .", "red.png"]
    assert "1 0.500 A red square . red.png 2 0.500 red.png · 2024-05-01 10:30:01" in found.text
    assert found.of("html") == [{"lang": "en"}]
    assert "<title>a query</title>" in found.raw


def test_nothing_on_a_page_runs_or_leaves_it(root: Path) -> None:
    name = 'a"><img src=x onerror=alert(1)>.png'
    (root / "red.png").rename(root / name)
    query = root / name
    found, _ = page(root, [hit(1, name, HOSTILE, date=HOSTILE), hit(2, f"{HOSTILE}.png", "")], HOSTILE)
    like, _ = page(root, [hit(1, name, HOSTILE)], query, "sentences")
    for one in (found, like):
        tags = {tag for tag, _ in one.elements}
        assert tags <= ALLOWED
        names = {name for _, attributes in one.elements for name in attributes}
        assert not {name for name in names if name.startswith("on") or name in ("href", "srcset", "style")}
        assert len(pictures(one)) == 1
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", one.raw)
        (policy,) = [meta["content"] for meta in one.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
        style = re.search("<style>(.*)</style>", one.raw, re.DOTALL)
        assert style
        allowed = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
        assert policy == (
            f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
        )
    assert "<script>alert(2)</script>&amp;\\x1b[31m\\u202egnp." in found.text


def test_photos_on_a_page_carry_no_metadata(root: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    photo = Image.new("RGB", (900, 30), "red")
    photo.save(root / "red.jpg", exif=exif, comment=b"my home")
    found, _ = page(root, [hit(1, "red.jpg")])
    (thumbnail,) = pictures(found)
    assert not thumbnail.getexif()
    assert set(thumbnail.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_a_page_does_not_tell_where_the_photos_are(root: Path) -> None:
    (root / "2024").mkdir()
    (root / "red.png").rename(root / "2024" / "red.png")
    hits = [hit(1, str(root / "2024" / "red.png")), hit(2, str(root / "blue.png"))]
    found, _ = page(root, hits)
    assert "2024/red.png" in found.text
    assert str(root) not in found.raw
    found, _ = page(root, hits[:1])
    assert "2024" not in found.text


def test_a_photo_that_cannot_be_shown_says_why(root: Path) -> None:
    found, thumbnails = page(root, [hit(1), hit(2, "gone.png", "A dog .")])
    assert len(pictures(found)) == 1
    assert "gone.png: cannot be read (No such file or directory)" in found.text
    assert [div.get("aria-label") for div in found.of("div") if div.get("role") == "img"] == ["A dog ."]
    assert list(thumbnails.problems) == [root / "gone.png"]


def test_sentences_are_listed_below_the_photo_or_the_sentence(root: Path) -> None:
    found, _ = page(root, [hit(1), hit(2, caption="犬 が 走る")], root / "red.png", "sentences")
    assert [attributes["alt"] for attributes in found.of("img")] == ["red.png"]
    assert "2 sentences found in scenes" in found.text
    assert "犬 が 走る" in found.text
    found, _ = page(root, [hit(1)], "a query", "sentences")
    assert found.of("img") == []


def test_names_and_captions_of_no_text_are_written_visibly(root: Path) -> None:
    found, _ = page(root, [hit(1, os.fsdecode(b"caf\xe9.png"), "half \ud800")])
    assert "caf\\udce9.png" in found.text
    assert "half \\ud800" in found.text


def test_a_page_that_is_too_large_or_cannot_be_written_is_refused(root: Path) -> None:
    with pytest.raises(QueryError, match=r"1,001 results are too many for a page; ask for at most 1,000 with --top-k"):
        page(root, [hit(rank) for rank in range(1, 1002)])
    (root / "page.html").mkdir()
    with pytest.raises(WorkspaceError, match=r"page\.html: cannot be written"):
        page(root, [hit()])
    assert sorted(os.listdir(root)) == ["page.html", "red.png"]
