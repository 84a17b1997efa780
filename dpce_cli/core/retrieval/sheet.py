"""Contact sheets: a query and its ranked answers on one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from dpce_cli.core.errors import QueryError
from dpce_cli.core.retrieval.hits import Answers, Hit
from dpce_cli.core.retrieval.lettering import Lettering
from dpce_cli.core.retrieval.thumbnails import Thumbnails
from dpce_cli.core.storage.files import replacing

MAX_HITS = 100
"""A sheet with more photos takes gigabytes of memory to draw."""

FEWEST_COLUMNS, MOST_COLUMNS = 3, 5
TILE = 280
PHOTO = 520
LIST_WIDTH = 720
MARGIN = 36
GAP = 24

PAPER, INK, FAINT, EMPTY = "#ffffff", "#1d2329", "#68727d", "#eef0f2"


def draw_sheet(path: Path, answers: Answers, thumbnails: Thumbnails) -> None:
    """Draw a query and its answers: photos in rows below it, sentences in a list beside it or below it.

    A photo that is missing, unreadable or outside of the data set's root is a grey tile with the reason.

    Raises:
        QueryError: there are more than `MAX_HITS` hits.
        WorkspaceError: `path` cannot be written.
    """
    if len(answers.hits) > MAX_HITS:
        raise QueryError(
            f"{len(answers.hits):,} results are too many for a picture; ask for at most {MAX_HITS} with --top-k, "
            "or leave out the picture"
        )
    sheet = _Sheet(answers, thumbnails)
    image = sheet.photos() if answers.kind == "photos" else sheet.sentences()
    with replacing(path) as temporary:
        image.save(temporary, "PNG")


class _Sheet:
    def __init__(self, answers: Answers, thumbnails: Thumbnails) -> None:
        self._answers, self._thumbnails = answers, thumbnails
        self._query = answers.query if isinstance(answers.query, Path) else None
        names = [Path(hit.path).name for hit in answers.hits]
        texts = [str(answers.query), *names, *(hit.caption for hit in answers.hits)]
        self._lettering = Lettering(texts, thumbnails.reporter)

    def photos(self) -> Image.Image:
        """Photos in reading order, each with its rank, score and caption, below the query."""
        hits = self._answers.hits
        columns = min(MOST_COLUMNS, max(FEWEST_COLUMNS, len(hits)))
        width = columns * (TILE + GAP) - GAP
        beside = TILE + GAP if self._query else 0
        heading_text = f"like {self._query.name}" if self._query else str(self._answers.query)
        heading = self._lettering.wrap(heading_text, 30, width - beside, max_lines=3)
        grid_top = MARGIN + (TILE if self._query else 40 * len(heading)) + GAP
        row_height = TILE + 36 + 3 * 23 + GAP
        rows = -(-len(hits) // columns)
        sheet = Image.new("RGB", (width + 2 * MARGIN, grid_top + rows * row_height - GAP + MARGIN), PAPER)
        draw = ImageDraw.Draw(sheet)
        if self._query:
            sheet.paste(self._tile(self._query, TILE), (MARGIN, MARGIN))
        self._write(draw, (MARGIN + beside, MARGIN), heading, 30, INK, line_height=40)
        for index, hit in enumerate(hits):
            left = MARGIN + index % columns * (TILE + GAP)
            top = grid_top + index // columns * row_height
            sheet.paste(self._tile(self._answers.root / hit.path, TILE, self._answers.root), (left, top))
            self._write_rank(draw, (left, top + TILE + 9), hit)
            caption = self._lettering.wrap(hit.caption or Path(hit.path).name, 17, TILE, max_lines=3)
            self._write(draw, (left, top + TILE + 36), caption, 17, INK, line_height=23)
        return sheet

    def sentences(self) -> Image.Image:
        """Sentences with their ranks and scores, to the right of the query's photo or below the query's sentence."""
        hits = self._answers.hits
        captions = [self._lettering.wrap(hit.caption, 21, LIST_WIDTH, max_lines=3) for hit in hits]
        heights = [26 + 28 * len(lines) + 20 for lines in captions]
        heading = [] if self._query else self._lettering.wrap(str(self._answers.query), 30, LIST_WIDTH, max_lines=3)
        left, list_top = (2 * MARGIN + PHOTO, MARGIN) if self._query else (MARGIN, MARGIN + 40 * len(heading) + GAP)
        height = max(MARGIN + PHOTO if self._query else 0, list_top + sum(heights) - 20) + MARGIN
        sheet = Image.new("RGB", (left + LIST_WIDTH + MARGIN, height), PAPER)
        draw = ImageDraw.Draw(sheet)
        if self._query:
            sheet.paste(self._tile(self._query, PHOTO), (MARGIN, MARGIN))
        self._write(draw, (MARGIN, MARGIN), heading, 30, INK, line_height=40)
        top = list_top
        for hit, lines, height in zip(hits, captions, heights, strict=True):
            self._write_rank(draw, (left, top), hit)
            self._write(draw, (left, top + 26), lines, 21, INK, line_height=28)
            top += height
        return sheet

    def _tile(self, path: Path, size: int, root: Path | None = None) -> Image.Image:
        """The whole photo in the middle of a square."""
        tile = Image.new("RGB", (size, size), EMPTY)
        photo = self._thumbnails.read(path, size, root)
        if isinstance(photo, str):
            lines = [
                line for text in (path.name, photo) for line in self._lettering.wrap(text, 17, size - 40, max_lines=4)
            ]
            top = size // 2 - 12 * len(lines)
            self._write(ImageDraw.Draw(tile), (20, top), lines, 17, FAINT, line_height=23)
        else:
            tile.paste(photo, ((size - photo.width) // 2, (size - photo.height) // 2))
        return tile

    def _write_rank(self, draw: ImageDraw.ImageDraw, position: tuple[int, int], hit: Hit) -> None:
        left, top = position
        rank = f"{hit.rank}"
        for shift in (0.0, 0.6):  # Pillow's own font has no bold style
            self._lettering.draw(draw, (left + shift, top), rank, 17, INK)
        beside = left + self._lettering.width(rank, 17) + 12
        self._lettering.draw(draw, (beside, top), hit.percent or f"{hit.score:.3f}", 17, FAINT)

    def _write(
        self,
        draw: ImageDraw.ImageDraw,
        position: tuple[int, int],
        lines: Sequence[str],
        size: int,
        colour: str,
        *,
        line_height: int,
    ) -> None:
        for number, line in enumerate(lines):
            self._lettering.draw(draw, (position[0], position[1] + number * line_height), line, size, colour)
