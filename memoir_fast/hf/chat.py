"""What a tokenizer's chat template puts around what is said: its texts, and the marks of turns in them."""

import itertools
from collections.abc import Sequence
from typing import Any

from memoir_fast.hf.tokens import special_names, tokenize

_TURN_TOKENS = 8  # the longest mark of a turn that is looked for
_CONTENTS = ("Zebra", "Quartz", "Maple", "Violet")


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_text(tokenizer: Any, talk: Sequence[tuple[str, str]]) -> str:
    """A conversation of (role, content) in the tokenizer's template, up to where the assistant is to speak.

    Raises whatever the template raises, e.g. where it knows no system prompt.
    """
    messages = [{"role": role, "content": content} for role, content in talk]
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


def as_chat(tokenizer: Any, prompt: str, system: str | None = None) -> str | None:
    """A plain prompt as a user's only turn, behind the template's own system prompt or `system`.

    None without a template, where it leaves out what one of them says, and where it takes no system prompt.
    """
    if not has_template(tokenizer) or not prompt.strip():
        return None
    try:
        text = chat_text(tokenizer, [*([("system", system)] if system else []), ("user", prompt)])
    except Exception:
        if not system:
            raise
        return None  # a template that refuses a system prompt raises what it likes
    return text if prompt.strip() in text and (system or "").strip() in text else None


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are no text: marked as special, or added and written <like this>."""
    names = special_names(tokenizer)
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    return set(getattr(tokenizer, "all_special_ids", ())) | {number for number, one in added if one.content in names}


def turn_marks(tokenizer: Any) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The token sequences that open a user's turn, and those that close it; two empty lists without a template.

    They are what the template puts between contents that are known. A mark that opens is the shortest end of what
    stands before a user's content in which an assistant's header does not end, grown until a special token is in it.
    One that closes is the beginning of what stands behind it, be it an answer or where one is to begin, up to its first
    special token.
    """
    if not has_template(tokenizer):
        return [], []
    user, assistant, again, system = _CONTENTS
    short = [("user", user), ("assistant", assistant), ("user", again)]
    opening: list[list[int]] = []
    answer: list[int] = []
    closing: list[int] = []
    for talk in (short, [("system", system), *short]):
        try:
            between = _between(tokenizer, talk)
        except Exception:  # a template that refuses a system prompt raises what it likes
            between = None
        if between is None:
            continue
        first = len(talk) - 3
        opening += [between[first], between[first + 2]]
        answer = between[first + 1]
        same = (one == other for one, other in zip(answer, between[-1], strict=False))
        closing = answer[: len(list(itertools.takewhile(bool, same)))]
    special = special_ids(tokenizer)
    opened = {_opening(one, answer, special) for one in opening if one}
    end = next((place + 1 for place, one in enumerate(closing) if one in special), len(closing))
    return sorted(opened), [tuple(closing[:end])] if closing else []


def user_text(tokenizer: Any, prompt: str, opened: Sequence[Sequence[int]], closed: Sequence[Sequence[int]]) -> str:
    """What the user says in the last turn of a prompt in the chat template; "" where no turn is opened in it."""
    ids = tokenize(tokenizer, prompt)
    starts = [
        place
        for mark in opened
        for place in range(len(mark), len(ids) + 1)
        if tuple(ids[place - len(mark) : place]) == tuple(mark)
    ]
    if not starts:
        return ""
    start = max(starts)
    ends = [
        place
        for mark in closed
        for place in range(start, len(ids) - len(mark) + 1)
        if tuple(ids[place : place + len(mark)]) == tuple(mark)
    ]
    return str(tokenizer.decode(ids[start : min(ends, default=len(ids))])).strip()


def _between(tokenizer: Any, talk: list[tuple[str, str]]) -> list[list[int]] | None:
    """Token ids before each content of a conversation, and behind the last; None where a content is not found."""
    rest = tokenizer(chat_text(tokenizer, talk), add_special_tokens=False).input_ids
    found = []
    for _, content in talk:
        place, length = _place(tokenizer, rest, content)
        if place < 0:
            return None
        found.append(rest[:place])
        rest = rest[place + length :]
    return [*found, rest]


def _place(tokenizer: Any, ids: list[int], content: str) -> tuple[int, int]:
    """Where a word stands among token ids, and how many it has, whatever stands before it; (-1, 0): nowhere."""
    for before in (" ", "", "\n"):
        lead = tokenizer(before, add_special_tokens=False).input_ids if before == "\n" else []
        own = tokenizer(before + content, add_special_tokens=False).input_ids[len(lead) :]
        for place in range(len(ids) - len(own) + 1):
            if ids[place : place + len(own)] == own:
                return place, len(own)
    return -1, 0


def _opening(before: list[int], answer: list[int], special: set[int]) -> tuple[int, ...]:
    length = 1
    while length < len(before) and answer[-length:] == before[-length:]:
        length += 1
    while length < min(len(before), _TURN_TOKENS) and not special.intersection(before[-length:]):
        length += 1
    return tuple(before[-length:])
