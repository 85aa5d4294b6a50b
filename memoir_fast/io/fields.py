"""A record's fields, checked as they are read: what is missing, empty or of another kind is named."""

from collections.abc import Collection
from difflib import get_close_matches
from itertools import chain
from typing import Any

Pair = tuple[str, str]


class Fields:
    """A record whose fields are checked as they are read."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        """Whether the field is there and not empty."""
        value = self._values.get(name)
        return bool(value.strip() if isinstance(value, str) else value)

    def require_no_misspelling(self, known: Collection[str], meant: Collection[str]) -> None:
        """ValueError where a field that is not known has nearly the name of one in `meant`; others are passed over.

        An edit whose bank is misspelt would answer everybody.
        """
        for name in self._values.keys() - known:
            like = [one for one in meant if abs(len(one) - len(name)) <= 2]
            like = [one for one in like if sorted(one) == sorted(name)] or get_close_matches(name.lower(), like, 1, 0.8)
            if like:
                raise ValueError(f"the field {name!r} is not known; is {like[0]!r} meant?")

    def text(self, *names: str) -> str:
        """The first of these fields that is there, or of its list of answers the first; not empty."""
        name = next((name for name in names if name in self._values), None)
        if name is None:
            raise ValueError(f"the field {' or '.join(map(repr, names))} is missing, got {sorted(self._values)}")
        value = _first(self._values[name])
        if not isinstance(value, str):
            raise ValueError(f"the field {name!r} must be text, got {type(value).__name__}")
        if not value.strip():
            raise ValueError(f"the field {name!r} is empty")
        return value

    def prompt(self, *names: str) -> str:
        """As `text`, of a field that holds one text: of a list of prompts all but the first would be lost."""
        name = next((name for name in names if name in self._values), names[0])
        value = self._values.get(name)
        if isinstance(value, list) and len(value) > 1:
            raise ValueError(f"the field {name!r} must be text, got {_kind(value)}")
        return self.text(*names)

    def optional(self, *names: str) -> str | None:
        """As `text`; None where there is none of them, or nothing in it."""
        there = next((name for name in names if name in self), None)
        return None if there is None else self.text(there)

    def texts(self, name: str) -> tuple[str, ...]:
        """A text or a list of texts; empty where the field is missing."""
        values = self._values.get(name) or []
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"the field {name!r} must be text or a list of texts, got {type(values).__name__}")
        return tuple(value for value in values if value.strip())

    def inner(self, name: str) -> "Fields":
        """The object in that field."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise ValueError(f"the field {name!r} must be an object, got {_kind(value)}")
        return Fields(value)

    def pair(self, prompt: str, answer: str) -> tuple[Pair, ...]:
        """One (prompt, answer); none where one of the fields, which must both be there, is empty.

        WISE's files have rows whose locality answer is empty: they are edits as good as any.
        """
        for name in (prompt, answer):
            if name not in self._values:
                self.text(name)
        return ((self.text(prompt), self.text(answer)),) if prompt in self and answer in self else ()

    def answered(self, prompt: str, answer: str) -> tuple[Pair, ...]:
        """As `pair`, of fields that need not be there, and of which NaN says that nothing is in them."""
        texts = self._values.get(prompt), self._values.get(answer)
        return self.pair(prompt, answer) if all(isinstance(one, str) for one in texts) else ()

    def pairs(self, name: str, prompt: str, answer: str) -> tuple[Pair, ...]:
        """The (prompt, answer) pairs of a list of objects, or of an object that holds such lists by kind.

        An object's prompt may be a list of prompts beside as many answers. Pairs without an answer are left out:
        KnowEdit has some whose answer nobody knows.
        """
        value = self._values.get(name) or []
        lists = list(value.values()) if isinstance(value, dict) else [value]
        found = []
        for one in chain.from_iterable([each] if isinstance(each, dict) else each or [] for each in lists):
            if not isinstance(one, dict):
                raise ValueError(f"the field {name!r} must hold objects, got {type(one).__name__}")
            for asked in _each(one, name, prompt, answer):
                text = _first(asked.get(answer))
                if isinstance(text, str) and text.strip():
                    found.append((Fields(asked).prompt(prompt), text))
        return tuple(found)


def _each(values: dict[str, Any], name: str, prompt: str, answer: str) -> list[dict[str, Any]]:
    """An object of several prompts and their answers, as EasyEdit's requests have it, as objects of one each."""
    prompts, answers = values.get(prompt), values.get(answer)
    if not isinstance(prompts, list) or len(prompts) < 2:
        return [values]
    if not isinstance(answers, list) or len(answers) != len(prompts):
        count = len(answers) if isinstance(answers, list) else 1
        raise ValueError(f"{len(prompts)} texts in {prompt!r} of {name!r} have {count} in {answer!r}")
    return [{prompt: one, answer: other} for one, other in zip(prompts, answers, strict=True)]


def _kind(value: Any) -> str:
    """What a field holds in place of one thing; several of them belong in as many rows, as do MQuAKE's edits."""
    return f"a list of {len(value)}: write a row for each" if isinstance(value, list) else type(value).__name__


def _first(value: Any) -> Any:
    """The first text of lists in lists, as answers are kept."""
    while isinstance(value, list) and value:
        value = value[0]
    return "" if value == [] else value
