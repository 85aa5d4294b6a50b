"""The server as one ASGI application: transformers' routes, those of the memory, metrics, and the gate before them."""

from typing import Any

from memoir_fast.hf import server
from memoir_fast.hf.request_errors import CLIENTS, RefusedError, refused
from memoir_fast.serving import edits
from memoir_fast.serving.access import Keys, Token
from memoir_fast.serving.gate import Gate, refusal
from memoir_fast.serving.metrics import Metrics

MOST_BYTES = 1 << 20
"""Of a request's body."""


def application(
    memoir: Any,
    name: str,
    keys: Keys | None = None,
    admin: Token | None = None,
    most_bytes: int = MOST_BYTES,
    ending: server.Ending | None = None,
) -> Gate:
    """The server of a model with a memory: an ASGI application, to be run in one process, by uvicorn or another.

    Args:
        memoir (Memoir): the memory, attached to its model.
        name (str): what requests call the model.
        keys (Keys, optional): who may ask, and for which banks. Default: anybody, for edits in no bank.
        admin (Token, optional): what requests under /memoir must bear. Default: there are no such routes.
        most_bytes (int): bodies of requests are no longer. Default: 1 MiB.
        ending (Ending, optional): ends answers, and lists of edits, early.

    Raises:
        MemoirError: a package is missing, or this transformers has another server than is known; see `server.build`.

    Example:
        >>> from memoir_fast.serving.app import application
        >>> app = application(memoir, "tiny")  # doctest: +SKIP
        >>> uvicorn.run(app, port=8000)  # doctest: +SKIP
    """
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    metrics, ending = Metrics(memoir), ending or server.Ending()
    app = server.build(memoir.model, memoir.tokenizer, name, metrics.generation, ending)
    app.router.routes.append(_scraped(metrics))
    if admin is not None:
        app.router.routes.extend(edits.routes(memoir, ending))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in (RefusedError, *CLIENTS, Exception):
        app.add_exception_handler(kind, _refused)
    return Gate(app, memoir.banks, metrics.request, keys, admin, most_bytes)


def _scraped(metrics: Metrics) -> Any:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    def scrape(_: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": metrics.content_type})

    return Route("/metrics", scrape, methods=["GET"])


async def _invalid(_: Any, error: Any) -> Any:
    """A body that is no JSON object, as FastAPI says it."""
    why = "; ".join(str((one.get("ctx") or {}).get("error") or one.get("msg")) for one in error.errors())
    text = "the body of a request must be a JSON object, sent as Content-Type: application/json"
    return refusal(400, f"{text}: {why}")


async def _http(_: Any, error: Any) -> Any:
    """What FastAPI and transformers' handlers refuse; OpenAI has no 422."""
    return refusal(400 if error.status_code == 422 else error.status_code, str(error.detail), error.headers)


async def _refused(_: Any, error: Exception) -> Any:
    told = refused(error)
    return refusal(told.status, str(told))
