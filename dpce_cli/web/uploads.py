"""Photos that a browser sends to search with."""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from dpce_cli.core.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 30 * 2**20
_SECONDS = 60
_DECODERS = ThreadPoolExecutor(2)
"""Two photos are decoded at once, because one may take 0.5 GB of memory."""


async def uploaded_photo(request: Request) -> Image.Image:
    """The photo in the body of a request.

    Raises:
        HTTPException: it is too large, has too many pixels, is damaged or no photo, or took too long to arrive.
    """
    size = 0
    with tempfile.NamedTemporaryFile() as file:
        try:
            async with asyncio.timeout(_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    if size <= MOST_BYTES:  # what is more is read to the end: else the browser does not read the answer
                        file.write(part)
        except TimeoutError:
            raise HTTPException(408, "the photo took too long to arrive; send it again") from None
        except ClientDisconnect:
            raise HTTPException(400, "the photo did not arrive whole; send it again") from None
        if size > MOST_BYTES:
            raise HTTPException(413, f"the photo has more than {MOST_BYTES // 2**20} MiB; use a smaller copy")
        file.flush()
        return await asyncio.get_running_loop().run_in_executor(_DECODERS, _decoded, Path(file.name))


def _decoded(path: Path) -> Image.Image:
    from dpce_cli.core.data.images import load_image

    try:
        return load_image(path)
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ").partition("; ")[0]
        raise HTTPException(
            400, f"this photo cannot be searched with: {reason}; use another, or a smaller copy"
        ) from error
