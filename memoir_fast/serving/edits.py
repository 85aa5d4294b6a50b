"""Edits over HTTP: listed, taught and deleted; tau is calibrated, the memory's state is told."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from memoir_fast.core.edit import Edit
from memoir_fast.errors import MemoirError, StoreFullError, UnknownEditError
from memoir_fast.io import strict_json
from memoir_fast.io.edit_texts import edit_of, texts_of
from memoir_fast.serving.gate import refusal

FIELDS = ("prompt", "target", "paraphrases", "keep", "bank", "author", "source", "subject")
MOST_LISTED = 1000


def routes(memoir: Any) -> list[Any]:
    """Starlette's routes under /memoir. Who may ask is not their affair.

    A change is made in a thread of its own, one at a time, and is in the memory, and in its folder where that is open,
    before it is answered.

    Args:
        memoir (Memoir): what is changed.
    """
    from anyio import CapacityLimiter, to_thread
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    one_at_a_time = CapacityLimiter(1)

    def route(path: str, method: str, act: Callable[[dict[str, str], Any], Any], changes: bool = True) -> Route:
        async def answer(request: Request) -> JSONResponse:
            given = {**request.path_params, **request.query_params}
            try:
                body = await request.body()
                values = _json(body) if body else None
                limiter = one_at_a_time if changes else None
                return JSONResponse(_plain(await to_thread.run_sync(act, given, values, limiter=limiter)))
            except UnknownEditError as error:
                return refusal(404, str(error))
            except StoreFullError as error:
                return refusal(507, str(error))
            except (TypeError, ValueError) as error:
                return refusal(400, str(error))
            except (MemoirError, OSError) as error:  # the folder cannot be written: nothing was changed
                return refusal(500, str(error))

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
        return memoir.edit([_one_of(values, index) for index in range(len(values))], progress=False)

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
