"""Why a photo fits the sentence of a search: its heat map, and the shares of the words."""

from __future__ import annotations

import io
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.thumbnails import Thumbnails
from dpce_cli.web.pages import LARGE, Searches, photo_of

if TYPE_CHECKING:
    from dpce_cli.core.retrieval.explaining import Explanation

_MOST_LETTERS = 1000


def explanation_routes(searches: Searches) -> list[Route]:
    """The words with their shares as JSON, and the photo with its heat map as a JPEG.

    Explanations are made one at a time, because each keeps all cores busy; the last ones are kept.
    """
    lock = threading.Lock()

    @lru_cache(maxsize=16)
    def explained(name: str, fingerprint: str, photo: Path, changed: int, sentence: str) -> Explanation:
        from dpce_cli.core.data.images import load_image
        from dpce_cli.core.retrieval.explaining import explain

        return explain(searches.gallery(name).model, load_image(photo), sentence)

    def explanation(request: Request) -> tuple[Path, Explanation]:
        name, sentence = request.path_params["gallery"], request.query_params.get("text", "").strip()
        gallery = searches.gallery(name)
        photo = photo_of(gallery, request.path_params["key"])
        if not sentence or len(sentence) > _MOST_LETTERS:
            raise HTTPException(400, f"give a sentence of at most {_MOST_LETTERS:,} letters")
        with lock:
            return photo, explained(name, gallery.model.fingerprint, photo, photo.stat().st_mtime_ns, sentence)

    def words(request: Request) -> JSONResponse:
        _, found = explanation(request)
        return JSONResponse(
            {
                "similarity": round(found.similarity, 4),
                "where": found.heat and found.heat.where,
                "words": [
                    {
                        "word": word.text,
                        "share": None if word.share is None else round(word.share, 4),
                        "strength": found.strength(word),
                        "is_known": word.is_known,
                    }
                    for word in found.words
                ],
            }
        )

    def heat(request: Request) -> Response:
        from dpce_cli.core.retrieval.explanation_sheet import draw_heat

        photo, found = explanation(request)
        shown = Thumbnails(Reporter()).read(photo, LARGE)
        if isinstance(shown, str):
            raise HTTPException(410, shown)
        file = io.BytesIO()
        (draw_heat(shown, found.heat) if found.heat else shown).save(file, "JPEG", quality=85)
        return Response(file.getvalue(), media_type="image/jpeg")

    return [Route("/why/{gallery}/{key}/words", words), Route("/why/{gallery}/{key}/heat", heat)]
