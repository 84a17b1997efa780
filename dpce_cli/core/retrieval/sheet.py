"""Contact sheets: a query and its ranked answers on one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dpce_cli.core.data.images import load_image
from dpce_cli.core.errors import DataError, QueryError
from dpce_cli.core.retrieval.hits import Hit
from dpce_cli.core.storage.files import replacing

MAX_HITS = 100
"""A sheet with more would take gigabytes of memory to draw."""

FEWEST_COLUMNS, MOST_COLUMNS = 3, 5
TILE = 280
PHOTO = 520
LIST_WIDTH = 720
MARGIN = 36
GAP = 24

PAPER, INK, FAINT, EMPTY, OWN = "#ffffff", "#1d2329", "#68727d", "#eef0f2", "#1a8745"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_image_hits(path: Path, query: str, hits: Sequence[Hit], root: Path) -> None:
    """Draw the pictures found for a sentence in reading order, each with its rank, score and caption.

    The query's own image is framed. A picture that is missing, unreadable or outside `root` is a grey tile with
    its name.

    Raises:
        QueryError: there are more than `MAX_HITS` hits.
        WorkspaceError: `path` cannot be written.
    """
    _require_drawable(hits)
    title, body = _font(30), _font(17)
    columns = min(MOST_COLUMNS, max(FEWEST_COLUMNS, len(hits)))
    width = columns * (TILE + GAP) - GAP
    heading = _wrap(query, title, width, max_lines=3)
    grid_top = MARGIN + 40 * len(heading) + GAP
    row_height = TILE + 36 + 3 * 23 + GAP
    rows = -(-len(hits) // columns)
    sheet = Image.new("RGB", (width + 2 * MARGIN, grid_top + rows * row_height - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN), heading, title, INK, line_height=40)
    for index, hit in enumerate(hits):
        left = MARGIN + index % columns * (TILE + GAP)
        top = grid_top + index // columns * row_height
        sheet.paste(_tile(root / hit.path, TILE, root), (left, top))
        if hit.is_own:
            draw.rectangle((left - 5, top - 5, left + TILE + 4, top + TILE + 4), outline=OWN, width=5)
        _write_rank(draw, (left, top + TILE + 9), hit, body)
        caption = _wrap(hit.caption, body, TILE, max_lines=3)
        _write(draw, (left, top + TILE + 36), caption, body, INK, line_height=23)
    _save(sheet, path)


def draw_caption_hits(path: Path, query_image: Path, hits: Sequence[Hit]) -> None:
    """Draw a picture and, to its right, the captions found for it, each with its rank and score.

    The picture's own captions are marked. A missing or unreadable picture is a grey tile with its name.

    Raises:
        QueryError: there are more than `MAX_HITS` hits.
        WorkspaceError: `path` cannot be written.
    """
    _require_drawable(hits)
    small, body = _font(17), _font(21)
    captions = [_wrap(hit.caption, body, LIST_WIDTH, max_lines=3) for hit in hits]
    heights = [26 + 28 * len(lines) + 20 for lines in captions]
    size = (3 * MARGIN + PHOTO + LIST_WIDTH, 2 * MARGIN + max(PHOTO, sum(heights) - 20))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    sheet.paste(_tile(query_image, PHOTO), (MARGIN, MARGIN))
    left, top = 2 * MARGIN + PHOTO, MARGIN
    for hit, lines, height in zip(hits, captions, heights, strict=True):
        if hit.is_own:
            draw.rectangle((left - 16, top, left - 12, top + height - 21), fill=OWN)
        _write_rank(draw, (left, top), hit, small)
        _write(draw, (left, top + 26), lines, body, INK, line_height=28)
        top += height
    _save(sheet, path)


def _require_drawable(hits: Sequence[Hit]) -> None:
    if len(hits) > MAX_HITS:
        raise QueryError(
            f"{len(hits)} results do not fit on a picture; ask for at most {MAX_HITS} with --top-k, "
            "or leave out the picture"
        )


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _tile(path: Path, size: int, root: Path | None = None) -> Image.Image:
    """The whole picture, which must lie in `root` if that is given, scaled to fit a square."""
    tile = Image.new("RGB", (size, size), EMPTY)
    try:
        if root and not path.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{path}: outside {root}")
        picture = load_image(path)
    except DataError:
        lines = _wrap(path.name, _font(17), size - 40, max_lines=3)
        _write(ImageDraw.Draw(tile), (20, size // 2 - 12 * len(lines)), lines, _font(17), FAINT, line_height=23)
        return tile
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    tile.paste(picture, ((size - width) // 2, (size - height) // 2))
    return tile


def _write_rank(draw: ImageDraw.ImageDraw, position: tuple[int, int], hit: Hit, font: Font) -> None:
    left, top = position
    rank = f"{hit.rank}"
    for shift in (0.0, 0.6):  # the one typeface at hand has no bold
        draw.text((left + shift, top), rank, INK, font)
    score = f"{hit.score:.3f}" + ("  own" if hit.is_own else "")
    draw.text((left + font.getlength(rank) + 12, top), score, OWN if hit.is_own else FAINT, font)


def _write(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    lines: Sequence[str],
    font: Font,
    colour: str,
    *,
    line_height: int,
) -> None:
    for number, line in enumerate(lines):
        draw.text((position[0], position[1] + number * line_height), line, colour, font)


def _wrap(text: str, font: Font, width: int, *, max_lines: int) -> list[str]:
    """Lines no wider than `width` pixels, the last one shortened if there are more than `max_lines`."""
    rest = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    lines: list[str] = []
    while rest and len(lines) < max_lines:
        end = 1
        while end < len(rest) and font.getlength(rest[: end + 1]) <= width:
            end += 1
        if end < len(rest) and (space := rest.rfind(" ", 0, end + 1)) > 0:
            end = space
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        while font.getlength(f"{lines[-1]}...") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] = f"{lines[-1].rstrip()}..."
    return lines


def _save(sheet: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")
