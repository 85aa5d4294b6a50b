"""The gate before a server's routes: who may pass, how long a body may be, and which banks a request sees."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from memoir_fast.hf.request_errors import error_body
from memoir_fast.hf.server import ROUTES, for_client
from memoir_fast.serving.access import Keys, Token

OPEN = ("/health", "/metrics")
"""What is answered without a key."""
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def refusal(
    status: int, text: str, headers: dict[str, str] | None = None, further: dict[str, Any] | None = None
) -> Any:
    """A response that says why a request is refused, as OpenAI's clients read it; `further` stands beside it."""
    from starlette.responses import JSONResponse

    return JSONResponse({**error_body(status, text), **(further or {})}, status, headers)


class Gate:
    """An ASGI application before another.

    Args:
        app: the application, with its routes.
        banks: a function of banks' names that gives a context manager, `Memoir.banks`.
        measured: is told path and seconds of each request.
        keys (Keys, optional): with them, requests other than `OPEN` and those under /memoir must bear one that is
            known, and are handled within its banks.
        admin (Token, optional): what requests under /memoir must bear.
        most_bytes (int): a longer body is refused, before it is read where its length is given.
    """

    def __init__(
        self,
        app: Any,
        banks: Callable[[frozenset[str]], AbstractContextManager[None]],
        measured: Callable[[str, float], None],
        keys: Keys | None,
        admin: Token | None,
        most_bytes: int,
    ) -> None:
        self._app, self._banks, self._measured = app, banks, measured
        self._keys, self._admin, self._most = keys, admin, most_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles a request, or refuses it with 401 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        try:
            await self._handle(scope, receive, send)
        finally:
            self._measured(_label(scope["path"]), time.perf_counter() - started)

    async def _handle(self, scope: Message, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], dict(scope["headers"])
        borne, asked = _bearer(headers), None
        if self._admin is not None and _is_admins(path):
            if not self._admin.is_(borne):
                await _unknown("the admin token")(scope, receive, send)
                return
        elif self._keys is not None and path not in OPEN:
            asked = self._keys.banks_of(borne)
            if asked is None:
                await _unknown("an API key that this server knows")(scope, receive, send)
                return
        body = await _body(receive, self._most, headers.get(b"content-length", b"0"))
        if body is None:
            text = f"the body of a request has at most {self._most:,} bytes here"
            await refusal(413, text, {"Connection": "close"})(scope, receive, send)
            return
        if body["type"] != "http.request":  # the client is gone: there is nobody to answer
            return
        first, gone = iter((body,)), threading.Event()
        end = asyncio.ensure_future(_end(receive, gone))

        async def again() -> Message:
            message = next(first, None)
            return await asyncio.shield(end) if message is None else message

        try:
            with for_client(gone), self._banks(asked) if asked else nullcontext():
                await self._app(scope, again, send)
        finally:
            end.cancel()


async def _body(receive: Receive, most: int, length: bytes) -> Message | None:
    """A request's whole body as one message, or what came in its place; None where it is too long."""
    if int(length) > most:
        return None
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return message
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not message.get("more_body"):
            return {"type": "http.request", "body": b"".join(parts), "more_body": False}


async def _end(receive: Receive, gone: threading.Event) -> Message:
    """What comes when a request's client is gone, or has its answer; `gone` is set then."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    gone.set()
    return message


def _bearer(headers: dict[bytes, bytes]) -> str:
    """What a request bears, "" for nothing."""
    kind, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""


def _unknown(what: str) -> Any:
    text = f"expected the header Authorization: Bearer ... with {what}"
    return refusal(401, text, {"WWW-Authenticate": "Bearer"})


def _is_admins(path: str) -> bool:
    return path == "/memoir" or path.startswith("/memoir/")


def _label(path: str, known: Iterable[str] = (*ROUTES, "/metrics")) -> str:
    """One of few words for any path."""
    return path if path in known else "/memoir" if _is_admins(path) else "other"
