"""Captions that a person writes on the page, teaching a gallery's model with them, and measuring it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dpce_cli.core.errors import DataError, DpceError
from dpce_cli.core.galleries.gallery import Gallery
from dpce_cli.core.progress import Advance, Reporter
from dpce_cli.core.teaching.captions import LONGEST, CaptionsOfGallery, find_photo
from dpce_cli.core.teaching.evaluation import evaluate_gallery
from dpce_cli.core.teaching.suggestions import sentence_galleries, suggest_captions
from dpce_cli.core.teaching.teaching import teach_gallery
from dpce_cli.web.pages import Searches, photo_of, place_of

_MOST_BODY = 8 * LONGEST
"""Bytes of a caption in JSON."""


class Lesson(Reporter):
    """One run of teaching, in a thread of its own, and what it reports."""

    def __init__(self, searches: Searches, name: str) -> None:
        self.message, self.is_running = "", True
        self._searches, self._name = searches, name
        self._thread = threading.Thread(target=self._teach, daemon=True)  # killed at any time, it changes nothing
        self._thread.start()

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        finished = done

        def advance(count: int = 1, fields: object = None) -> None:
            nonlocal finished
            finished += count
            self.message = f"{label}: {finished:,} of {total:,}"

        yield advance

    def _teach(self) -> None:
        try:
            result = teach_gallery(self._searches.workspace, self._name, self)
            learnt = ", ".join(f"{word} ({count} photos)" for word, count in result.words.enough.items())
            rare = (
                f"; in too few photos to be learnt: {', '.join(result.words.too_few)}" if result.words.too_few else ""
            )
            self.message = f"Learnt: {learnt or 'nothing'}{rare}"
        except (DpceError, OSError) as error:
            self.message = str(error)
        finally:
            self.is_running = False


def teaching_routes(searches: Searches) -> list[Route]:
    """Where the page reads and writes captions, teaches and measures."""
    lessons: dict[str, Lesson] = {}
    starting = threading.Lock()

    def captions_of(gallery: Gallery) -> CaptionsOfGallery:
        return CaptionsOfGallery(searches.workspace.teaching_folder(gallery.folder.name))

    async def photo_captions(request: Request) -> JSONResponse:
        caption = await _caption(request) if request.method != "GET" else ""
        return JSONResponse(await run_in_threadpool(change_and_list, request, caption))

    def change_and_list(request: Request, caption: str) -> dict[str, Any]:
        gallery = searches.gallery(request.path_params["gallery"])
        key = request.path_params["key"]
        photo_of(gallery, key)
        photo = find_photo(gallery.folder, place_of(gallery, key)[1])
        captions = captions_of(gallery)
        if request.method == "POST":
            captions.add(photo, caption, gallery.model.fingerprint)
        elif request.method == "DELETE":
            captions.remove(photo.content, caption)
        written = captions.read()
        own = [one.caption for one in written if one.content == photo.content]
        others = [one.caption for one in written if one.content != photo.content]
        sentences = sentence_galleries(gallery.folder.parent, gallery.model)
        with searches.lock:
            nearest = suggest_captions(photo.path, gallery.model, sentences, others)
        return {"captions": own, "suggested": [one for one in nearest if one not in own]}

    def teaching(request: Request) -> JSONResponse:
        name = request.path_params["gallery"]
        gallery = searches.gallery(name)
        if request.method == "POST":
            with starting:
                if any(lesson.is_running for lesson in lessons.values()):
                    raise HTTPException(409, "the model is learning already; wait until it has finished")
                lessons[name] = Lesson(searches, name)
        captions, lesson = captions_of(gallery), lessons.get(name)
        written, taught = captions.read(), captions.taught_models().get(gallery.model.fingerprint)
        untaught = [one for one in written if one.split == "train" and not (taught and one.content in taught.photos)]
        return JSONResponse(
            {
                "captions": len(written),
                "untaught": len(untaught),
                "file": str(captions.path),
                "running": lesson is not None and lesson.is_running,
                "message": lesson.message if lesson else "",
            }
        )

    def quality(request: Request) -> JSONResponse:
        gallery = searches.gallery(request.path_params["gallery"])
        with searches.lock:
            try:
                measured = evaluate_gallery(gallery.folder, gallery.model, captions_of(gallery), searches.notes)
            except DataError as error:
                return JSONResponse({"message": str(error)})
        found = (measured.hubs_corrected or measured.plain)["text_to_image"]
        return JSONResponse(
            {"captions": measured.captions, "photos": measured.photos, "sentence_to_photo": asdict(found)}
        )

    return [
        Route("/captions/{gallery}/{key}", photo_captions, methods=["GET", "POST", "DELETE"]),
        Route("/teaching/{gallery}", teaching, methods=["GET", "POST"]),
        Route("/quality/{gallery}", quality),
    ]


async def _caption(request: Request) -> str:
    """The caption in the JSON body of a request."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BODY:
            raise HTTPException(413, f"a caption has at most {LONGEST:,} characters")
    try:
        caption = json.loads(body)["caption"]
    except (ValueError, KeyError, TypeError, RecursionError):
        caption = None
    if not isinstance(caption, str):
        raise HTTPException(400, "the request has no caption")
    return caption
