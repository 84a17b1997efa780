from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from dpce_cli.web.safety import Guard

TOKEN = "0123456789abcdef"


def client(token: str = "") -> TestClient:
    def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("inside")

    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    guarded = Guard(app, hosts=frozenset({"127.0.0.1:8000"}), token=token)
    return TestClient(guarded, base_url="http://127.0.0.1:8000", follow_redirects=False)


def test_the_page_itself_is_answered_with_a_strict_policy() -> None:
    answer = client().get("/")
    assert (answer.status_code, answer.text) == (200, "inside")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1:9"},
        {"host": "127.0.0.1.evil.example:8000"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_names_and_other_sites_are_refused(headers: dict[str, str], method: str) -> None:
    answer = client().request(method, "/", headers=headers)
    assert answer.status_code == 403
    assert "inside" not in answer.text


def test_the_pages_own_origin_is_answered_and_writing_needs_it() -> None:
    own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert client().post("/", headers=own).text == "inside"
    assert client().get("/").text == "inside"
    assert client().post("/").status_code == 403


def test_a_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get() -> None:
    page = client(TOKEN)
    assert page.get("/").status_code == 401
    assert page.get("/?token=wrong").status_code == 401
    assert page.get("/", headers={"cookie": "dpce-token=wrong"}).status_code == 401
    first = page.get(f"/?token={TOKEN}&text=a%20dog")
    assert (first.status_code, first.headers["location"]) == (303, "/?text=a+dog")
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert page.get("/").text == "inside"
