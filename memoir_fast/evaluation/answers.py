"""What the model says when nobody puts the right words into its mouth: free generation, exact match and F1."""

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from tqdm.auto import tqdm

from memoir_fast.core.edited_model import EditedModel
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import Row, context_length, padding_id, row, unspaced

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and surplus white space, as SQuAD compares answers.

    Example:
        >>> normalised("The  University of Michigan.")
        'university of michigan'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, target: str) -> float:
    """1.0 where both are the same after `normalised`, else 0.0."""
    return float(normalised(answer) == normalised(target))


def says(answer: str, target: str) -> bool:
    """Whether an answer begins with the target, however much white space stands before and within it.

    Case and punctuation count, and the target's last word or number must not run on into a longer one. What follows is
    free; so is what follows at once in a script without spaces.

    Example:
        >>> says("Lyon, of course", " Lyon"), says("Lyonnaise potatoes", "Lyon"), says("It is Lyon", "Lyon")
        (True, False, False)
    """
    said, wanted = " ".join(answer.split()), " ".join(target.split())
    rest = said[len(wanted) : len(wanted) + 1]
    runs_on = wanted[-1:].isalnum() and rest.isalnum() and not unspaced(rest)
    return said.startswith(wanted) and not runs_on


def f1(answer: str, target: str) -> float:
    """Harmonic mean of precision and recall of the words of `answer`, after `normalised`.

    Example:
        >>> f1("the red house", "red car")
        0.5
    """
    said, wanted = normalised(answer).split(), normalised(target).split()
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not said or not wanted:
        return float(said == wanted)
    return 2 * shared / (len(said) + len(wanted))


@torch.no_grad()
def free_answers(
    memoir: EditedModel,
    pairs: Sequence[tuple[str, str]],
    batch: int = 8,
    beyond: int = 0,
    banks: Sequence[str] | None = None,
    progress: bool = False,
) -> list[str]:
    """Per (prompt, target): what the model says, greedily, in as many tokens as the target has; ends are stripped.

    The length is all that it is told of the target. Batches are padded on the left; the route is that of generation.

    Args:
        memoir (EditedModel): the model.
        pairs (sequence of (str, str)): prompts and targets, joined as an `Edit`'s are.
        batch (int): prompts that are answered together, at most. Default: 8.
        beyond (int): how many tokens more it may say, as far as its context has room. Default: 0.
        banks (sequence of str, optional): the bank that each prompt is asked in. Default: those in force.
        progress (bool): show a progress bar. Default: False.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    model, tokenizer = memoir.model, memoir.tokenizer
    longest = context_length(model)
    rows = [row(tokenizer, prompt, target, longest) for prompt, target in pairs]
    lengths = [len(one.ids) - one.prompt + beyond for one in rows]
    fill, device = padding_id(tokenizer), device_of(model)
    found: dict[int, str] = {}
    bar = tqdm(total=len(rows), desc="asking", unit="prompt", disable=not progress)
    for part in _parts(rows, lengths, batch, longest):
        width, new = max(rows[index].prompt for index in part), max(lengths[index] for index in part)
        prompts = [rows[index].ids[: rows[index].prompt] for index in part]
        output = model.generate(
            input_ids=torch.tensor([[fill] * (width - len(ids)) + ids for ids in prompts], device=device),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device),
            max_new_tokens=new if longest is None else min(new, longest - width),
            do_sample=False,
            num_beams=1,
            pad_token_id=fill,
            **({} if banks is None else {"memoir_banks": [banks[index] for index in part]}),
        )
        for index, said in zip(part, output[:, width:].tolist(), strict=True):
            found[index] = tokenizer.decode(said[: lengths[index]], skip_special_tokens=True).strip()
        bar.update(len(part))
    bar.close()
    return [found[index] for index in range(len(pairs))]


def _parts(rows: Sequence[Row], lengths: Sequence[int], batch: int, longest: int | None) -> Iterator[list[int]]:
    """Places of rows that are answered together: of like lengths, and the longest prompt has room for all answers."""
    part: list[int] = []
    width = 0
    for index in sorted(range(len(rows)), key=lambda index: (lengths[index], rows[index].prompt)):
        width = max(width, rows[index].prompt)
        crowded = longest is not None and width + lengths[index] > longest  # the longest answer of the part so far
        if part and (len(part) == batch or crowded):
            yield part
            part, width = [], rows[index].prompt
        part.append(index)
    if part:
        yield part
