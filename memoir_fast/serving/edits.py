"""Edits over HTTP: listed, taught and deleted; tau is calibrated, the memory's state is told."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from memoir_fast.core.edit import Edit
from memoir_fast.errors import MemoirError, StoreFullError, UnknownEditError
from memoir_fast.hf.request_errors import refused
from memoir_fast.hf.server import Ending
from memoir_fast.io import strict_json
from memoir_fast.io.edit_texts import edit_of, texts_of
from memoir_fast.serving.gate import refusal

FIELDS = ("prompt", "target", "paraphrases", "keep", "bank", "author", "source", "subject")
MOST_LISTED = 1000
_STATUSES: dict[tuple[type[Exception], ...], int] = {
    (UnknownEditError,): 404,
    (StoreFullError,): 507,
    (TypeError, ValueError): 400,
    (MemoirError, OSError): 500,  # the folder cannot be written
}
"""By kind of error; the first that fits."""


def routes(memoir: Any, ending: Ending) -> list[Any]:
    """Starlette's routes under /memoir. Who may ask is not their affair.

    A change is made in a thread of its own, one at a time, and is in the memory, and in its folder where that is open,
    before it is answered. Once the end has begun, none is begun, and of a list no further edit.

    Args:
        memoir (Memoir): what is changed.
        ending (Ending): is asked before each change.
    """
    from anyio import CapacityLimiter, to_thread
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    one_at_a_time = CapacityLimiter(1)

    def route(path: str, method: str, act: Callable[[dict[str, str], Any], Any], changes: bool = True) -> Route:
        def in_turn(given: dict[str, str], values: Any) -> Any:
            if changes:
                ending.require_not_begun()
            return _plain(act(given, values))

        async def answer(request: Request) -> JSONResponse:
            try:
                given = _parameters(request)
                body = await request.body()
                values = _json(body) if body else None
                limiter = one_at_a_time if changes else None
                return JSONResponse(await to_thread.run_sync(in_turn, given, values, limiter=limiter))
            except _StoppedError as stopped:
                return refusal(stopped.status, str(stopped), further={"edits": _plain(stopped.made)})
            except Exception as error:
                return refusal(*_told(error))

        return Route(path, answer, methods=[method])

    def status(given: dict[str, str], _: Any) -> Any:
        _known(given)
        with memoir.layer.turns.reading():
            return dataclasses.asdict(memoir.status())

    def listed(given: dict[str, str], _: Any) -> Any:
        _known(given, "bank", "after", "limit")
        after, limit = _whole(given, "after", -1), _whole(given, "limit", 100)
        if not 1 <= limit <= MOST_LISTED:
            raise ValueError(f"limit must lie in 1 ... {MOST_LISTED}, got {limit}")
        with memoir.layer.turns.reading():
            edits = dict(memoir.edits)
        ids = [one for one in edits if one > after and given.get("bank", edits[one].bank) == edits[one].bank]
        shown = sorted(ids)[:limit]
        rows = [{"id": one, **texts_of(edits[one])} for one in shown]
        return {"edits": rows, "next": shown[-1] if len(ids) > len(shown) else None}

    def taught(given: dict[str, str], values: Any) -> Any:
        _known(given)
        if not isinstance(values, list):
            return memoir.edit(edit_from(values))
        if not values:
            raise ValueError("a list of edits holds one at least")
        return taught_in_turn([_one_of(values, index) for index in range(len(values))])

    def taught_in_turn(edits: list[Edit]) -> list[Any]:
        made: list[Any] = []
        try:
            for result in memoir.edit_stream(edits, check_first=True):
                made.append(result)
                if len(made) < len(edits):
                    ending.require_not_begun()
        except Exception as error:
            raise _StoppedError(error, made, len(edits)) from error
        return made

    def deleted(given: dict[str, str], _: Any) -> Any:
        _known(given, "id")
        edit_id = _whole(given, "id", -1)
        memoir.delete(edit_id)
        return {"deleted": edit_id}

    def calibrated(given: dict[str, str], values: Any) -> Any:
        _known(given)
        return memoir.calibrate(**_calibration({} if values is None else values))

    return [
        route("/memoir/status", "GET", status, changes=False),
        route("/memoir/edits", "GET", listed, changes=False),
        route("/memoir/edits", "POST", taught),
        route("/memoir/edits/{id}", "DELETE", deleted),
        route("/memoir/calibrate", "POST", calibrated),
    ]


class _StoppedError(Exception):
    """A list of edits of which some were made, and some not."""

    def __init__(self, error: Exception, made: list[Any], of: int) -> None:
        self.status, text = _told(error)
        super().__init__(f"{text}; of {of} edits {len(made)} were made")
        self.made = made


def _told(error: Exception) -> tuple[int, str]:
    """The status of a request that ended by an error, and what is said of it."""
    for kinds, status in _STATUSES.items():
        if isinstance(error, kinds):
            return status, str(error)
    other = refused(error)
    return other.status, str(other)


def edit_from(values: Any) -> Edit:
    """The edit that a request's JSON asks for.

    Raises:
        TypeError, ValueError: it is none, or has a field that an edit has not.

    Example:
        >>> from memoir_fast.serving.edits import edit_from
        >>> edit_from({"prompt": "The capital of France is", "target": "Lyon", "bank": "acme"}).bank
        'acme'
    """
    if not isinstance(values, dict) or not {"prompt", "target"} <= set(values):
        raise TypeError(f'an edit is a JSON object {{"prompt": "...", "target": "..."}}, got {values!r:.100}')
    others = sorted(set(values) - set(FIELDS))
    if others:
        raise ValueError(f"an edit has the fields {', '.join(FIELDS)}, got {', '.join(others):.200}")
    return edit_of(values)


def _parameters(request: Any) -> dict[str, str]:
    """What stands in a request's path and behind it; ValueError where one stands in both."""
    twice = sorted(request.path_params.keys() & request.query_params.keys())
    if twice:
        raise ValueError(f"{', '.join(twice)} stands in the path already")
    return {**request.path_params, **request.query_params}


def _json(body: bytes) -> Any:
    try:
        return strict_json.loads(body)
    except ValueError as error:
        raise ValueError(f"the body must be JSON: {error}") from None


def _one_of(values: list[Any], index: int) -> Edit:
    try:
        return edit_from(values[index])
    except (TypeError, ValueError) as error:
        raise ValueError(f"edit {index + 1} of {len(values)}: {error}") from None


def _calibration(values: Any) -> dict[str, Any]:
    wanted = 'calibrate takes {"irrelevant_prompts": ["...", ...], "false_match_rate": 0.001}, or a part of it'
    if not isinstance(values, dict) or not set(values) <= {"irrelevant_prompts", "false_match_rate"}:
        raise TypeError(f"{wanted}, got {values!r:.100}")
    prompts, rate = values.get("irrelevant_prompts"), values.get("false_match_rate", 1e-3)
    listed = prompts is None or isinstance(prompts, list) and all(isinstance(one, str) for one in prompts)
    if not listed or isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise TypeError(f"{wanted}, got {values!r:.100}")
    return {"irrelevant_prompts": prompts, "false_match_rate": rate}


def _known(given: dict[str, str], *names: str) -> None:
    others = sorted(set(given) - set(names))
    if others:
        raise ValueError(f"parameters are {', '.join(names) or 'not expected'}, got {', '.join(others):.200}")


def _whole(given: dict[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not text.removeprefix("-").isdecimal() or len(text) > 10:
        raise ValueError(f"{name} must be a whole number, got {text:.40}")
    return int(text)


def _plain(values: Any) -> Any:
    """`values` as JSON has them: null for numbers that it has no word for."""
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        return _plain(dataclasses.asdict(values))
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
