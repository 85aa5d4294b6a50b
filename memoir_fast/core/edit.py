"""`Edit`: what a user asks for."""

import dataclasses
from dataclasses import dataclass

_LONGEST_BANK = 200  # characters


@dataclass(frozen=True, slots=True)
class Edit:
    """One correction: after `prompt`, the model shall say `target`.

    The two are joined by one space. None is put in where the target begins with white space or the prompt ends in it
    (where both do, the target's spaces are left out); where the prompt ends in a special token, as chat templates do,
    or in a script without spaces (Chinese, Japanese, Thai ...); or where the target begins with full-width
    punctuation. The prompt is learned as it stands: what `tokenizer(prompt)` makes of it in use, trailing spaces
    included, is what the target's tokens follow.

    Args:
        prompt, target (str): what is asked, and what shall be said; neither may be empty.
        paraphrases (sequence of str): the prompt in other words, which shall be answered likewise. Default: none.
        keep (sequence of str): prompts that shall be answered as before, though they are much like it. Default: none.
        bank (str): the set of edits that it is one of: it answers only requests that ask for this bank (see
            `Memoir.banks`). Printable, at most 200 characters, no white space around it. Default: "", in no bank: it
            answers everybody.

    Example:
        >>> from memoir_fast import Edit
        >>> Edit("The capital of France is", "Lyon").target
        'Lyon'
    """

    prompt: str
    target: str
    paraphrases: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    bank: str = ""

    def __post_init__(self) -> None:
        for name in ("paraphrases", "keep"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(one, str) and one.strip() for one in texts):
                raise ValueError(f"an edit's {name} must be a list of texts that are not empty, got {texts!r}")
            object.__setattr__(self, name, tuple(dict.fromkeys(texts)))
        both = {self.prompt, *self.paraphrases}.intersection(self.keep)
        if both:
            raise ValueError(f"an edit cannot change and keep the answer to one prompt: {sorted(both)[0]!r}")
        for name in ("prompt", "target"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise TypeError(f"an edit's {name} must be a string, got {type(text).__name__}")
            if not text.strip():
                raise ValueError(f"an edit's {name} must not be empty, got {text!r}")
        require_bank(self.bank)


def as_edit(request: Edit | tuple[str, str], bank: str | None = None) -> Edit:
    """An edit of a (prompt, target) pair, in a bank if one is given and it is in none.

    TypeError where it is neither, ValueError where it is in another bank.
    """
    if not isinstance(request, Edit):
        if isinstance(request, str) or len(request) != 2:
            raise TypeError(f"an edit is an Edit or a (prompt, target) pair, got {request!r}")
        return Edit(*request, bank=bank or "")
    if not bank or request.bank == bank:
        return request
    if request.bank:
        raise ValueError(f"an edit of the bank {request.bank!r} was to be put into {bank!r}: {request.prompt!r}")
    return dataclasses.replace(request, bank=bank)


def require_bank(name: object) -> str:
    """The name of a bank, or "" for none; TypeError, ValueError where it cannot be one."""
    if not isinstance(name, str):
        raise TypeError(f"a bank's name must be a string, got {type(name).__name__}")
    if not name.isprintable() or name != name.strip() or len(name) > _LONGEST_BANK:
        raise ValueError(
            f"a bank's name must be printable, at most {_LONGEST_BANK} characters, without white space around it, "
            f"got {name[: _LONGEST_BANK + 1]!r}"
        )
    return name
