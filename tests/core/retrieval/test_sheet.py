from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from dpce_cli.core.errors import QueryError, WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.hits import Answers, Hit
from dpce_cli.core.retrieval.sheet import EMPTY, INK, PAPER, draw_sheet
from dpce_cli.core.retrieval.thumbnails import Thumbnails
from tests.tars import write_tar

RED, BLUE = (200, 30, 30), (30, 30, 200)


def hit(rank: int, path: str = "red.png", caption: str = "A red square .") -> Hit:
    return Hit(rank=rank, score=0.5, image_id="7", path=path, caption=caption)


def draw_photos(path: Path, query: str | Path, hits: Sequence[Hit], root: Path) -> Thumbnails:
    thumbnails = Thumbnails(Reporter())
    draw_sheet(path, Answers(title="", query=query, kind="photos", hits=hits, root=root), thumbnails)
    return thumbnails


def draw_sentences(path: Path, query: str | Path, hits: Sequence[Hit]) -> Thumbnails:
    thumbnails = Thumbnails(Reporter())
    draw_sheet(path, Answers(title="", query=query, kind="sentences", hits=hits, root=Path("/")), thumbnails)
    return thumbnails


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of a small square picture and a wide one."""
    root = tmp_path / "photos"
    root.mkdir()
    Image.new("RGB", (8, 8), RED).save(root / "red.png")
    Image.new("RGB", (400, 40), BLUE).save(root / "blue.png")
    return root


def area(path: Path, colour: tuple[int, ...] | str) -> int:
    """How many pixels have exactly this colour."""
    wanted = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        colours: Iterable[tuple[int, object]] = sheet.getcolors(maxcolors=2**24) or []
        return sum(count for count, value in colours if value == wanted)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as sheet:
        return sheet.size


def test_pictures_fill_equal_tiles_whatever_their_size_and_shape(tmp_path: Path, root: Path) -> None:
    draw_photos(tmp_path / "sheet.png", "a query", [hit(1), hit(2, "blue.png")], root)
    assert area(tmp_path / "sheet.png", RED) == 280 * 280
    assert area(tmp_path / "sheet.png", BLUE) == 280 * 28
    assert area(tmp_path / "sheet.png", EMPTY) == 280 * (280 - 28)


def test_a_picture_that_is_hardly_there_is_a_line(tmp_path: Path, root: Path) -> None:
    Image.new("RGB", (3_000, 1), BLUE).save(root / "line.png")
    draw_photos(tmp_path / "sheet.png", "q", [hit(1, "line.png")], root)
    assert area(tmp_path / "sheet.png", BLUE) == 280


def test_every_hit_is_drawn_in_rows_of_five(tmp_path: Path, root: Path) -> None:
    for count in (5, 6, 12):
        draw_photos(tmp_path / f"{count}.png", "q", [hit(rank + 1) for rank in range(count)], root)
        assert area(tmp_path / f"{count}.png", RED) == count * 280 * 280
    five, six, twelve = (size(tmp_path / f"{count}.png") for count in (5, 6, 12))
    assert five[0] == six[0] == twelve[0]
    assert twelve[1] - six[1] == six[1] - five[1] > 280


def test_a_picture_in_a_shard_is_shown(tmp_path: Path, root: Path) -> None:
    write_tar(root / "sub" / "0.tar", [("red.png", (root / "red.png").read_bytes())])
    draw_photos(tmp_path / "sheet.png", "q", [hit(1, "sub/0.tar/red.png"), hit(2, "sub/0.tar/blue.png")], root)
    assert area(tmp_path / "sheet.png", RED) == 280 * 280
    draw_sentences(tmp_path / "sheet.png", root / "sub" / "0.tar" / "red.png", [hit(1)])
    assert area(tmp_path / "sheet.png", RED) == 520 * 520


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.png", "cannot be read (No such file or directory)"),
        ("broken.jpg", "not a JPEG, PNG"),
        ("../outside.png", "lies outside of"),
        ("link.png", "lies outside of"),
    ],
)
def test_a_photo_that_cannot_be_shown_is_a_grey_tile_with_the_reason(
    tmp_path: Path, root: Path, path: str, reason: str
) -> None:
    (root / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (8, 8), BLUE).save(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    thumbnails = draw_photos(tmp_path / "sheet.png", "q", [hit(1, path), hit(2), hit(3, path)], root)
    assert list(thumbnails.problems) == [root / path]
    assert thumbnails.problems[root / path].startswith(reason)
    assert area(tmp_path / "sheet.png", BLUE) == 0
    assert area(tmp_path / "sheet.png", RED) == 280 * 280
    assert 2 * 0.85 * 280 * 280 < area(tmp_path / "sheet.png", EMPTY) < 2 * 0.98 * 280 * 280


@pytest.mark.parametrize(
    "text",
    [
        "",
        "子犬が走る 🐶 ქართული עברית",
        "word " * 5_000,
        "x" * 20_000,
        "two\nlines\tand \x00 \x1b[31m control characters",
        os.fsdecode(b"caf\xe9"),
    ],
)
def test_any_text_can_be_drawn(tmp_path: Path, root: Path, text: str) -> None:
    draw_photos(tmp_path / "images.png", text, [hit(1, caption=text)], root)
    draw_sentences(tmp_path / "captions.png", root / "red.png", [hit(1, caption=text)])
    assert size(tmp_path / "images.png")[1] < 700
    assert size(tmp_path / "captions.png")[1] < 700


def test_long_texts_stay_inside_the_margins(tmp_path: Path, root: Path) -> None:
    text = "Wide words wander " * 100
    draw_photos(tmp_path / "images.png", text, [hit(rank, caption=text) for rank in (1, 2, 3)], root)
    draw_sentences(tmp_path / "captions.png", root / "red.png", [hit(1, caption=text)])
    for name in ("images.png", "captions.png"):
        assert area(tmp_path / name, INK) > 0
        with Image.open(tmp_path / name) as sheet:
            right_margin = sheet.crop((sheet.width - 36, 0, sheet.width, sheet.height))
            assert right_margin.getcolors() == [(36 * sheet.height, ImageColor.getrgb(PAPER))]


def test_captions_are_listed_beside_the_photo(tmp_path: Path, root: Path) -> None:
    few, many = [hit(1)], [hit(rank) for rank in range(1, 21)]
    draw_sentences(tmp_path / "few.png", root / "red.png", few)
    draw_sentences(tmp_path / "many.png", root / "red.png", many)
    assert area(tmp_path / "few.png", RED) == area(tmp_path / "many.png", RED) == 520 * 520
    assert size(tmp_path / "few.png")[1] == 520 + 2 * 36
    assert size(tmp_path / "many.png")[1] == 20 * (26 + 28 + 20) - 20 + 2 * 36


def test_a_query_photo_reached_by_a_link_is_shown(tmp_path: Path, root: Path) -> None:
    (tmp_path / "link.png").symlink_to(root / "red.png")
    draw_sentences(tmp_path / "sheet.png", tmp_path / "link.png", [hit(1)])
    assert area(tmp_path / "sheet.png", RED) == 520 * 520


def test_photos_like_a_photo_are_drawn_below_it_and_sentences_below_a_sentence(tmp_path: Path, root: Path) -> None:
    draw_photos(tmp_path / "photos.png", root / "red.png", [hit(1, "blue.png")], root)
    assert area(tmp_path / "photos.png", RED) == 280 * 280
    assert area(tmp_path / "photos.png", BLUE) == 280 * 28
    draw_sentences(tmp_path / "sentences.png", "a query", [hit(1), hit(2)])
    assert area(tmp_path / "sentences.png", INK) > 0
    assert size(tmp_path / "sentences.png") == (720 + 2 * 36, 36 + 40 + 24 + 2 * (26 + 28 + 20) - 20 + 36)


def test_a_missing_query_photo_is_a_grey_tile(tmp_path: Path) -> None:
    thumbnails = draw_sentences(tmp_path / "sheet.png", tmp_path / "missing.png", [hit(1)])
    assert list(thumbnails.problems) == [tmp_path / "missing.png"]
    assert area(tmp_path / "sheet.png", EMPTY) > 0.9 * 520 * 520


def test_more_hits_than_a_sheet_can_hold_are_refused(tmp_path: Path, root: Path) -> None:
    hits = [hit(rank) for rank in range(1, 102)]
    with pytest.raises(QueryError, match=r"101 results are too many for a picture.*at most 100 with --top-k"):
        draw_photos(tmp_path / "sheet.png", "q", hits, root)
    with pytest.raises(QueryError, match=r"101 results are too many for a picture.*at most 100 with --top-k"):
        draw_sentences(tmp_path / "sheet.png", root / "red.png", hits)
    assert not (tmp_path / "sheet.png").exists()


def test_a_sheet_that_cannot_be_written_is_named(tmp_path: Path, root: Path) -> None:
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(WorkspaceError, match=r"sheet\.png: cannot be written"):
        draw_photos(tmp_path / "sheet.png", "q", [hit(1)], root)
    assert sorted(os.listdir(tmp_path)) == ["photos", "sheet.png"]
