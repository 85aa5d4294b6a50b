"""What is said of a request that is not answered: a status, and JSON in the form of OpenAI's errors."""

import logging
from typing import Any

_log = logging.getLogger(__name__)
LONGEST = 2000  # characters
CLIENTS: tuple[type[Exception], ...] = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""Errors that are taken for the client's fault: what tools and `generation_config` hold is looked at by transformers
and chat templates, which raise them; the last where lists lie too deep."""


class RefusedError(Exception):
    """A request that is not answered, with the status that says so."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def refused(error: Exception) -> RefusedError:
    """What is said of a request that ended by an error, which is logged unless it was meant to be said.

    Example:
        >>> from memoir_fast.hf.request_errors import refused
        >>> told = refused(ValueError("top_k is 0"))
        >>> told.status, str(told)
        (400, 'the request was not understood: ValueError: top_k is 0')
    """
    if isinstance(error, RefusedError):
        return error
    kind = type(error).__name__
    if isinstance(error, CLIENTS):
        _log.info("a request was not understood", exc_info=error)
        return RefusedError(400, f"the request was not understood: {kind}: {error}")
    _log.error("a request failed", exc_info=error)
    return RefusedError(500, f"the request failed: {kind}")


def error_body(status: int, text: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it; half characters, which JSON cannot be written with, are written out.

    Example:
        >>> from memoir_fast.hf.request_errors import error_body
        >>> error_body(400, "n is 2")["error"]
        {'message': 'n is 2', 'type': 'invalid_request_error', 'param': None, 'code': None}
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = text[:LONGEST].encode("utf-8", "backslashreplace").decode()
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
