"""`Edit`: what a user asks for."""

import dataclasses
import math
from dataclasses import dataclass, field

_LONGEST = {"bank": 200, "author": 200, "source": 2000}  # characters


@dataclass(frozen=True, slots=True)
class Edit:
    """One correction: after `prompt`, the model shall say `target`.

    The two are joined by one space. None is put in where the target begins with white space or the prompt ends in it
    (where both do, the target's spaces are left out); where the prompt ends in a special token, as chat templates do,
    or in a script without spaces (Chinese, Japanese, Thai ...); or where the target begins with full-width
    punctuation. The prompt is learned as it stands: what `tokenizer(prompt)` makes of it in use, trailing spaces
    included, is what the target's tokens follow.

    Args:
        prompt, target (str): what is asked, and what shall be said; neither may be empty. With routing codes, a prompt
            of special tokens and blanks alone is refused when it is to be learned: nothing tells it from others.
        paraphrases (sequence of str): the prompt in other words, which shall be answered likewise. Default: none.
        keep (sequence of str): prompts that shall be answered as before, though they are much like it, plainly and in a
            chat. With routing codes, what is nearer to one of them than to any edit follows none, and has the unedited
            model's output to the bit; one that follows another edit, or is taught later, follows that one. With
            `routing="paper"`, their answers are learned. Default: none.
        bank (str): the set of edits that it is one of: it answers only requests that ask for this bank (see
            `Memoir.banks`). Printable, at most 200 characters, no white space around it. Default: "", in no bank: it
            answers everybody.
        author (str): who asks for it, a free text for the record: nothing is decided by it. Printable, at most 200
            characters, no white space around it. Default: "", nobody is named.
        source (str): where it comes from, e.g. a link; as `author`, at most 2,000 characters. Default: "".
        subject (str): what the prompt is about, in the words of the prompt, such as "Japan". With routing codes, only
            prompts that name it follow the edit, in whatever case of letters and order of its words: the same question
            about another subject is left alone. So rewordings that are farther away are found. A chat names it in its
            latest turn. The prompt and every paraphrase must name it, in a chat in what the user says last; where it is
            a part of a word there, as "cat" of "cats", the words as they stand there name it too. Default: "", a prompt
            need not name anything.
        taught_at (float, optional): when it was first written to a memory, in seconds since 1970 by that machine's
            clock. The memory puts it in, and keeps it when the edit is taught again, saved or merged; edits that differ
            in it alone are equal. Default: None, not yet.

    Raises:
        TypeError, ValueError: a field is of another type, empty where it may not be, too long or not printable.

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
    author: str = ""
    source: str = ""
    taught_at: float | None = field(default=None, compare=False)
    subject: str = ""

    def __post_init__(self) -> None:
        for name in ("paraphrases", "keep"):
            texts = getattr(self, name)
            if isinstance(texts, tuple) and not texts:
                continue
            if isinstance(texts, str) or not all(isinstance(one, str) and one.strip() for one in texts):
                raise ValueError(f"an edit's {name} must be a list of texts that are not empty, got {texts!r}")
            object.__setattr__(self, name, tuple(dict.fromkeys(texts)))
        if self.keep and (both := {self.prompt, *self.paraphrases}.intersection(self.keep)):
            raise ValueError(f"an edit cannot change and keep the answer to one prompt: {sorted(both)[0]!r}")
        for name in ("prompt", "target"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise TypeError(f"an edit's {name} must be a string, got {type(text).__name__}")
            if not text.strip():
                raise ValueError(f"an edit's {name} must not be empty, got {text!r}")
        for text in (self.prompt, self.target, *self.paraphrases, *self.keep):
            if not text.isascii():
                _require_characters(text)
        if self.subject != "":
            _require_named(self.subject, (self.prompt, *self.paraphrases))
        for name in _LONGEST:
            if (text := getattr(self, name)) != "":
                require_line(name, text)
        if self.taught_at is not None:
            object.__setattr__(self, "taught_at", _moment(self.taught_at))


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
    return require_line("bank", name)


def require_line(name: str, text: object) -> str:
    """What may stand in an edit's field `name`, "bank", "author" or "source"; TypeError, ValueError otherwise."""
    what = "a bank's name" if name == "bank" else f"an edit's {name}"
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, got {type(text).__name__}")
    if not text.isprintable() or text != text.strip() or len(text) > _LONGEST[name]:
        raise ValueError(
            f"{what} must be printable, at most {_LONGEST[name]} characters, without white space around it, "
            f"got {text[:201]!r}"
        )
    return text


def _require_named(subject: object, prompts: tuple[str, ...]) -> None:
    """TypeError, ValueError where a subject is no text, or a prompt does not name it."""
    if not isinstance(subject, str):
        raise TypeError(f"an edit's subject must be a string, got {type(subject).__name__}")
    if not subject.strip():
        raise ValueError(f"an edit's subject must not be blank, got {subject!r}: leave it out where there is none")
    for prompt in prompts:
        if not names(prompt, subject):
            raise ValueError(
                f"the subject must stand in the prompt and each paraphrase: {subject!r} is not in {prompt!r}"
            )


def names(prompt: str, subject: str) -> bool:
    """Whether a subject stands in a prompt, in whatever case of letters.

    Example:
        >>> from memoir_fast.core.edit import names
        >>> names("Japan's currency is", "japan"), names("What is used there?", "Japan")
        (True, False)
    """
    return subject.strip().casefold() in prompt.casefold()


def subject_in(told: str | None, *prompts: str) -> str:
    """The subject that a row of a data set tells, where all its prompts name it beside other words; "" otherwise.

    Example:
        >>> from memoir_fast.core.edit import subject_in
        >>> subject_in("Japan", "Japan's currency is"), subject_in("5G is", "5G is"), subject_in(None, "5G is")
        ('Japan', '', '')
    """
    bare = (told or "").strip()
    if not bare or not all(names(one, bare) and one.strip().casefold() != bare.casefold() for one in prompts):
        return ""
    return bare


def _require_characters(text: str) -> None:
    """ValueError where a text holds half of a character, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"an edit's texts must be whole characters, got half of one, {text[error.start]!r}, at {error.start} of "
            f"{text[:80]!r}"
        ) from None


def _moment(seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"an edit's taught_at must be seconds since 1970, got {type(seconds).__name__}")
    if not math.isfinite(seconds):
        raise ValueError(f"an edit's taught_at must be finite, got {seconds}")
    return float(seconds)
