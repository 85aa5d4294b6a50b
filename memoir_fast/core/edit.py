"""`Edit`: what a user asks for."""

from dataclasses import dataclass


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

    Example:
        >>> from memoir_fast import Edit
        >>> Edit("The capital of France is", "Lyon").target
        'Lyon'
    """

    prompt: str
    target: str
    paraphrases: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

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


def as_edit(request: Edit | tuple[str, str]) -> Edit:
    """An edit of a (prompt, target) pair; TypeError where it is neither."""
    if isinstance(request, Edit):
        return request
    if isinstance(request, str) or len(request) != 2:
        raise TypeError(f"an edit is an Edit or a (prompt, target) pair, got {request!r}")
    return Edit(*request)
