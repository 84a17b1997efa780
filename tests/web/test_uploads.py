from __future__ import annotations

import io
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dpce_cli.core.data import images
from dpce_cli.web import uploads
from tests.web.serving import serving


def photo(size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def host() -> Iterator[str]:
    """Of a server that answers with the size of the photo that it gets."""

    async def size(request: Request) -> PlainTextResponse:
        found = await uploads.uploaded_photo(request)
        return PlainTextResponse(f"{found.width} x {found.height}")

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return PlainTextResponse(error.detail, error.status_code)

    app = Starlette(routes=[Route("/", size, methods=["POST"])], exception_handlers={HTTPException: refused})
    with serving(lambda _: app) as host:
        yield host


def half_sent(host: str, body: bytes) -> socket.socket:
    """A connection that has sent half of a body."""
    name, port = host.split(":")
    connection = socket.create_connection((name, int(port)), timeout=10)
    head = f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connection.sendall(head + body[: len(body) // 2])
    return connection


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (photo(), 200, "40 x 30"),
        (b"no photo", 400, "this photo cannot be searched with: not a JPEG"),
        (photo((900, 900))[:-30], 400, "this photo cannot be searched with: cannot be read"),
        (photo((9000, 8000)), 400, "has 9000 x 8000 pixels, more than 64 million; use another, or a smaller copy"),
        (b"x" * (uploads.MOST_BYTES + 1), 413, "the photo has more than 30 MiB; use a smaller copy"),
    ],
    ids=["photo", "text", "damaged", "pixels", "bytes"],
)
def test_a_photo_is_decoded_or_refused_with_the_reason(host: str, body: bytes, status: int, words: str) -> None:
    answer = httpx.post(f"http://{host}/", content=body)
    assert (answer.status_code, words in answer.text) == (status, True)
    assert "/tmp" not in answer.text


def test_a_client_that_stops_sending_is_sent_away_and_others_are_served_meanwhile(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_SECONDS", 1.5)
    with half_sent(host, photo()) as slow:
        assert httpx.post(f"http://{host}/", content=photo()).text == "40 x 30"
        slow.setblocking(False)
        with pytest.raises(BlockingIOError):
            slow.recv(1)
        slow.settimeout(10)
        answer = slow.recv(4096)
        while part := slow.recv(4096):  # the server closes the connection
            answer += part
    assert answer.startswith(b"HTTP/1.1 408")
    assert answer.endswith(b"the photo took too long to arrive; send it again")


def test_a_client_that_hangs_up_leaves_no_error_in_the_log(host: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    half_sent(host, photo()).close()
    assert httpx.post(f"http://{host}/", content=photo()).text == "40 x 30"
    assert caplog.records == []


def test_two_photos_are_decoded_at_once_and_the_others_wait(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    decode = images.load_image

    def counted(path: Path) -> Image.Image:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        found = decode(path)
        with lock:
            at_once -= 1
        return found

    monkeypatch.setattr(images, "load_image", counted)
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(httpx.post(f"http://{host}/", content=photo()).text))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (answers, most) == (["40 x 30"] * 8, 2)
