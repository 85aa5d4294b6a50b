"""lm-evaluation-harness: answers that are scored behind a context, each with the edit that its context follows."""

from collections.abc import Iterable
from typing import Any

from memoir_fast.core.edited_model import EditedModel

_PADDING = 0  # what the harness fills rows with on the right, without a mask

_Row = tuple[int, ...]


def follow_contexts(lm: Any, memoir: EditedModel) -> Any:
    """Lets a model of lm-evaluation-harness decide what is followed by each request's context alone.

    The harness runs context and answer in one pass, padded and without a mask, of which the model takes all for the
    prompt: an answer would take part in whom its question belongs to, and so would its neighbours' length. What is
    generated freely needs none of this. A text that is scored by itself has a context of one token; the last part of
    one that is longer than the model's context has what fits before it.

    Args:
        lm: an `HFLM` of the harness (or what has its `_loglikelihood_tokens`, `_model_call` and `max_length`) around
            the model with the memory. It is changed in place.
        memoir (Memoir): that memory.

    Returns:
        lm.

    Raises:
        AttributeError: it is no such model.

    Example:
        >>> from memoir_fast.integrations.harness import follow_contexts
        >>> from lm_eval import simple_evaluate  # doctest: +SKIP
        >>> from lm_eval.models.huggingface import HFLM  # doctest: +SKIP
        >>> lm = follow_contexts(HFLM(pretrained=model, tokenizer=tokenizer), memoir)  # doctest: +SKIP
        >>> figures = simple_evaluate(lm, tasks=["hellaswag"])  # doctest: +SKIP
    """
    score, call = lm._loglikelihood_tokens, lm._model_call
    known: dict[_Row, int] = {}

    def loglikelihood_tokens(requests: Iterable[Any], *args: Any, **kwargs: Any) -> list[Any]:
        given = list(requests)
        found: dict[int, Any] = {}
        for places, lengths in _apart([_row(context, answer, lm.max_length) for _, context, answer in given]):
            known.clear()
            known.update(lengths)
            found.update(zip(places, score([given[place] for place in places], *args, **kwargs), strict=True))
        known.clear()
        return [found[place] for place in range(len(given))]

    def model_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        lengths = [known.get(_bare(row), len(row)) for row in inputs.tolist()]  # of no request where batches are tried
        with memoir.prompts(lengths):
            return call(inputs, *args, **kwargs)

    lm._loglikelihood_tokens, lm._model_call = loglikelihood_tokens, model_call
    return lm


def _row(context: list[int], answer: list[int], longest: int) -> tuple[_Row, int]:
    """What the model is given of a request, and how many tokens of that are the context's."""
    row = [*context, *answer][-(longest + 1) : -1]
    return _bare(row), max(1, len(row) + 1 - len(answer))


def _bare(row: list[int]) -> _Row:
    """A row without padding, or what cannot be told from it."""
    end = len(row)
    while end and row[end - 1] == _PADDING:
        end -= 1
    return tuple(row[:end])


def _apart(rows: list[tuple[_Row, int]]) -> list[tuple[list[int], dict[_Row, int]]]:
    """The places of rows in groups, and in each how long the context of a row is: of one row in two groups, two."""
    groups: list[tuple[list[int], dict[_Row, int]]] = []
    for place, (row, length) in enumerate(rows):
        fitting = next((group for group in groups if group[1].get(row, length) == length), None)
        if fitting is None:
            groups.append(fitting := ([], {}))
        fitting[0].append(place)
        fitting[1][row] = length
    return groups
