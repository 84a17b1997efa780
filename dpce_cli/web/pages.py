"""What the page asks for: galleries, searches, and photos of the galleries."""

from __future__ import annotations

import base64
import binascii
import io
import os
import shlex
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dpce_cli.core.errors import DpceError
from dpce_cli.core.galleries.gallery import Gallery, about_gallery, load_gallery, open_gallery
from dpce_cli.core.galleries.overview import gallery_states
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.combining import parse_term
from dpce_cli.core.retrieval.hits import Hit
from dpce_cli.core.retrieval.thumbnails import Thumbnails
from dpce_cli.core.workspace.workspace import Workspace
from dpce_cli.web.uploads import uploaded_photo

if TYPE_CHECKING:
    from PIL import Image

_STATIC = Path(__file__).parent / "static"
_MOST_HITS = 1000
LARGE = 1600
_SIZES = {"small": 400, "large": LARGE}
_SHOWN_PROBLEMS = 20


class Notes(Reporter):
    """Keeps the warnings of a search, such as unknown words, for the page."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class Searches:
    """Searches in galleries, one at a time: each keeps all cores busy for some milliseconds.

    Args:
        workspace: where the galleries are.
        galleries: by name; each of photos or sentences.
        notes: the reporter of the galleries' models.
        model: names the model of all galleries; None: each has its own.
    """

    def __init__(
        self, workspace: Workspace, galleries: Mapping[str, Gallery], notes: Notes, model: str | None = None
    ) -> None:
        self.workspace, self.notes, self.lock = workspace, notes, threading.Lock()
        self._galleries, self._model = dict(galleries), model

    def __contains__(self, name: str) -> bool:
        return name in self._galleries

    def gallery(self, name: str) -> Gallery:
        """The gallery, with its present model: teaching and `dpce index --rebuild` change it."""
        if name not in self._galleries:
            raise HTTPException(404, f"there is no gallery {name!r} on this page")
        with self.lock:
            gallery = self._galleries[name]
            if about_gallery(gallery.folder) != gallery.about:
                gallery = self._galleries[name] = load_gallery(self.workspace, name, self.notes, model=self._model)
        return gallery

    def search(self, request: Request, upload: Image.Image | None) -> dict[str, Any]:
        asked = request.query_params
        gallery = self.gallery(asked.get("gallery", ""))
        first, count = (_number(asked.get(name, usual)) for name, usual in (("first", "0"), ("count", "60")))
        if first + count > _MOST_HITS:
            raise HTTPException(400, f"the page shows at most {_MOST_HITS:,} results")
        like = asked.get("like")
        query = upload or (photo_of(gallery, like) if like else asked.get("text", "").strip())
        if isinstance(query, str) and not query:
            raise HTTPException(400, "describe a photo, or drop one on the page")
        terms = [parse_term(text, is_minus=False) for text in asked.getlist("plus")]
        terms += [parse_term(text, is_minus=True) for text in asked.getlist("minus")]
        if any(isinstance(term.what, Path) for term in terms):
            raise HTTPException(400, "terms of the page are sentences")
        with closing(open_gallery(gallery.folder)) as catalogue:
            roots = catalogue.roots()
        with self.lock:
            self.notes.warnings.clear()
            hits = gallery.search(query, first + count, terms)
            notes = list(dict.fromkeys(self.notes.warnings))
        return {"kind": gallery.answers(None), "notes": notes, "hits": [_shown(hit, roots) for hit in hits[first:]]}


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise HTTPException(400, f"{text!r} is no number of results")
    return int(text)


def _shown(hit: Hit, roots: Mapping[Path, int]) -> dict[str, Any]:
    """A hit for the page. The key of a photo is the number of its root, and its path in the root."""
    path = Path(hit.path)
    root = next((root for root in roots if path.is_relative_to(root)), None)
    key = "" if root is None else f"{roots[root]}.{_encoded(os.fsencode(path.relative_to(root)))}"
    return {
        "rank": hit.rank,
        "score": round(hit.score, 4),
        "relevance": hit.relevance,
        "caption": hit.caption,
        "key": "" if hit.caption else key,
        "name": path.name.encode("utf-8", "replace").decode(),
        "path": str(path).encode("utf-8", "replace").decode(),
        "reveal": _revealing(path).encode("utf-8", "replace").decode(),
        "date": (hit.date or "").replace("T", " "),
    }


def _revealing(path: Path) -> str:
    """The shell command that shows a file in its folder."""
    return (
        f"open -R {shlex.quote(str(path))}" if sys.platform == "darwin" else f"xdg-open {shlex.quote(str(path.parent))}"
    )


def _encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def photo_of(gallery: Gallery, key: str) -> Path:
    """The file of the photo that a key names, if the gallery has it and it is inside its root, links followed.

    Raises:
        HTTPException: it is not so.
    """
    root, place = place_of(gallery, key)
    photo = place.resolve()
    if not photo.is_relative_to(root.resolve()):
        raise HTTPException(404, "the photo is outside of the gallery's folder")
    if not photo.is_file():
        raise HTTPException(410, "the photo is no longer there")
    return photo


def place_of(gallery: Gallery, key: str) -> tuple[Path, Path]:
    """The root of the photo that a key names, and where it is in the gallery.

    Raises:
        HTTPException: the gallery has no such photo.
    """
    number, _, text = key.partition(".")
    try:
        path = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        path = b""
    with closing(open_gallery(gallery.folder)) as catalogue, catalogue.snapshot() as database:
        known = (
            number.isdecimal()
            and database.execute(
                "SELECT roots.path FROM items JOIN roots ON roots.id = root WHERE root = ? AND items.path = ?",
                (int(number[:9]), path),
            ).fetchone()
        )
    if not known or gallery.about.kind != "photos":
        raise HTTPException(404, "the gallery has no such photo")
    root = Path(os.fsdecode(known[0]))
    return root, root / os.fsdecode(path)


def build_app(searches: Searches) -> Starlette:
    """The page over some galleries. `safety.Guard` must stand before it."""
    from dpce_cli.web.explanations import explanation_routes
    from dpce_cli.web.teaching import teaching_routes

    def state(request: Request) -> JSONResponse:
        shown = []
        states = gallery_states(searches.workspace.gallery_folder(""))
        for one in sorted(states, key=lambda state: state.kind == "sentences"):  # the page opens the first one
            if one.name in searches:
                problems = [{"path": visible, "reason": reason} for visible, reason in one.problems[:_SHOWN_PROBLEMS]]
                shown.append(
                    {"name": one.name, "kind": one.kind, "items": one.items, "pending": one.pending,
                     "problems": len(one.problems), "first_problems": problems}
                )  # fmt: skip
        return JSONResponse({"galleries": shown})

    async def search(request: Request) -> JSONResponse:
        upload = await uploaded_photo(request) if request.method == "POST" else None
        return JSONResponse(await run_in_threadpool(searches.search, request, upload))

    def photo(request: Request) -> Response:
        size = _SIZES.get(request.path_params["size"])
        gallery = searches.gallery(request.path_params["gallery"])
        path = photo_of(gallery, request.path_params["key"])
        if size is None:
            raise HTTPException(404, "photos have the sizes small and large")
        shown = Thumbnails(Reporter()).read(path, size)
        if isinstance(shown, str):
            raise HTTPException(410, shown)
        file = io.BytesIO()
        shown.save(file, "JPEG", quality=85)
        return Response(file.getvalue(), media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    def page(request: Request) -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/state", state),
            Route("/search", search, methods=["GET", "POST"]),
            Route("/photo/{gallery}/{size}/{key}", photo),
            *explanation_routes(searches),
            *teaching_routes(searches),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        exception_handlers={DpceError: _refused, HTTPException: _refused},
    )


def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 400
    text = str(error.detail) if isinstance(error, HTTPException) else str(error)
    return PlainTextResponse(text, status)
