"""Who may speak to a page's server on this machine: its own page, under the address that was printed, and nobody else.

A server on the loopback address can be reached by every page that the person has open: by a form or a script of
another origin, and through a name that is made to point here (DNS rebinding). So each request must name this server as
its host, come from its own origin where it says where it comes from, and know the token.
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_BODY = 2 * 2**20  # bytes of a request
TOO_LARGE = f"a request may be {LARGEST_BODY:,} bytes long"
READS = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class TooLarge(Exception):
    """A request's body is longer than `LARGEST_BODY`."""


class Gatekeeper:
    """Let through what comes from the page itself, with the token taken off its path; answer the rest with a reason."""

    def __init__(self, app: App, token: str, port: int) -> None:
        self.app, self.token = app, token.encode()
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"} | ({"127.0.0.1", "localhost"} if port == 80 else set())
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":  # no socket is spoken here, and nothing is to be done at start and end
            return
        send = _with_headers(send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, reason = self._refusal(scope["method"], scope["path"], headers)
        if status:
            await _answer(send, status, reason)
            return
        path = scope["path"].partition("/")[2].partition("/")[2]
        await self.app({**scope, "path": f"/{path}", "raw_path": f"/{path}".encode()}, _Limited(receive), send)

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Why a request is not let through, with its status; 0 where it is."""
        origin, reads = headers.get("origin"), method in READS
        given = path.split("/")[1].encode("utf-8", "replace") if path.startswith("/") else b""
        length, kind = headers.get("content-length", "0"), headers.get("content-type", "").partition(";")[0].strip()
        checks = (
            (headers.get("host", "").lower() in self.hosts, 403, "this server answers to its own address alone"),
            (origin is None or origin.lower() in self.origins, 403, "this server answers to its own page alone"),
            (headers.get("sec-fetch-site", "none") in ("same-origin", "none"), 403,
             "this server answers to its own page alone"),
            (reads or origin is not None, 403, "a change must say where it comes from (Origin)"),
            (secrets.compare_digest(given, self.token), 403,
             "open the address that `tlkd annotate` has printed, with all that stands in it"),
            ("/" in path[1:], 404, "the address ends with a slash"),
            (length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= LARGEST_BODY, 413,
             TOO_LARGE),
            (reads or kind == "application/json", 415, "a change must be JSON (Content-Type: application/json)"),
        )
        return next(((status, reason) for passed, status, reason in checks if not passed), (0, ""))


class _Limited:
    """A request's body, which is counted as it comes: not every request says how long it is."""

    def __init__(self, receive: Receive) -> None:
        self.receive, self.length = receive, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.length += len(message.get("body", b""))
        if self.length > LARGEST_BODY:
            raise TooLarge
        return message


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, reason: str) -> None:
    body = f"tlkd: {reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
