"""Who may talk to the page: browsers on this machine, or those that know the token, from the page itself only."""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "dpce-token"
HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class Guard:
    """Refuses requests from other sites, and where a token is set, from browsers without it.

    The header Host must name this server, so that another site's name that leads here is refused (DNS rebinding). The
    header Origin must be this server's; only requests that write nothing may lack it. No other site may load or embed
    anything.

    Args:
        hosts: the values of Host that are this server's, such as `127.0.0.1:8000`.
        token: what a browser must show, once as `?token=...` and then as a cookie; empty: nothing.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], token: str) -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        from starlette.responses import PlainTextResponse, RedirectResponse

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers)
        answer: PlainTextResponse | RedirectResponse | None = None
        if refusal:
            answer = PlainTextResponse(refusal, 403)
        elif self.token and not self._knows_token(headers):
            query = parse_qs(scope["query_string"].decode("latin-1"))
            (given,) = query.pop("token", [""])[:1]
            if hmac.compare_digest(given.encode(), self.token.encode()):
                rest = urlencode(query, doseq=True)
                answer = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), 303)
                answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            else:
                answer = PlainTextResponse("open the address that dpce serve printed, with its token", 401)
        await (answer or self.app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: dict[str, str]) -> str:
        if headers.get("host", "").lower() not in self.hosts:
            return "this name does not belong to the page; open the address that dpce serve printed"
        if method not in ("GET", "HEAD") and "origin" not in headers:
            return "only the page itself may write; its browser sends the header Origin"
        if "origin" in headers and headers["origin"].lower() not in {f"http://{host}" for host in self.hosts}:
            return "another site asks; this page answers itself only"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "another site asks; this page answers itself only"
        return ""

    def _knows_token(self, headers: dict[str, str]) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.token.encode())
