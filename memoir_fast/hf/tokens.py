"""Texts as token ids: a prompt, a prompt with what is said after it, and several of these as a batch."""

import re
from typing import Any, NamedTuple

import torch

_PUNCTUATION = "\u3000-\u303f\ufe30-\ufe4f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"  # full-width
_UNSPACED = re.compile(
    f"[{_PUNCTUATION}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)  # Thai, Lao, Burmese, Khmer, Chinese, Japanese; Korean has spaces
_SAMPLED = 97  # of so many tokens, one is read in the usual way too


class Row(NamedTuple):
    """One text as token ids [S], of which the first `prompt` belong to the prompt."""

    ids: list[int]
    prompt: int


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, special tokens as the tokenizer adds them. ValueError where there are none."""
    ids = tokenize(tokenizer, prompt)
    if not ids:
        raise ValueError(f"the prompt {prompt!r} has no tokens")
    return ids


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text. One that begins with the beginning token, as a chat template writes it, gets no second."""
    begin = getattr(tokenizer, "bos_token", None)
    if begin and text.startswith(begin):
        return tokenizer(text, add_special_tokens=False).input_ids
    return tokenizer(text).input_ids


def joined(tokenizer: Any, prompt: str, target: str) -> str:
    """Prompt and target as one text; see `memoir_fast.Edit` for what stands between them."""
    if prompt[-1:].isspace():
        return prompt + target.lstrip(" ")
    close = target[:1].isspace() or _ends_special(tokenizer, prompt)
    if close or unspaced(prompt[-1:]) or re.match(f"[{_PUNCTUATION}]", target):
        return prompt + target
    return f"{prompt} {target}"


def unspaced(character: str) -> bool:
    """Whether a character belongs to a script whose words have no spaces between them."""
    return bool(_UNSPACED.match(character))


def row(tokenizer: Any, prompt: str, target: str, longest: int | None = None) -> Row:
    """The row of a prompt and what is to be said after it, joined as `Edit` says.

    It begins with the prompt's own tokens, so that what is learned follows what the model is given in use.

    Raises:
        ValueError: where the target adds no token, or the row is longer than `longest`, the model's context.
    """
    own, text = prompt_ids(tokenizer, prompt), joined(tokenizer, prompt, target)
    ids = tokenize(tokenizer, text)
    if ids and ids[-1] == getattr(tokenizer, "eos_token_id", None) and own[-1] == ids[-1]:
        ids, own = ids[:-1], own[:-1]  # a tokenizer that closes every text with eos
    if ids[: len(own)] != own or _ends_special(tokenizer, prompt):
        ids = _continued(tokenizer, own, ids, text[len(prompt) :])
    if len(ids) <= len(own):
        raise ValueError(f"the target {target!r} has no tokens after the prompt {prompt!r}")
    if longest is not None and len(ids) > longest:
        raise ValueError(
            f"prompt and target have {len(ids)} tokens, the model's context holds {longest}: {prompt[:60]!r}"
        )
    return Row(ids, len(own))


def special_names(tokenizer: Any) -> set[str]:
    """The tokens that are no text.

    Not all of a chat template's are among the tokenizer's `all_special_tokens`: some are only marked as special in its
    vocabulary, and some are not even that, but are written <like this>.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {one.content for one in added if one.special or (one.content[:1] == "<" and one.content[-1:] == ">")}
    return names.union(getattr(tokenizer, "all_special_tokens", ())) - {""}


def _ends_special(tokenizer: Any, prompt: str) -> bool:
    """Whether a prompt ends in a special token."""
    if prompt[-1:].isalnum():  # a word that a user has added is none
        return False
    return prompt.endswith(tuple(special_names(tokenizer)))


def _continued(tokenizer: Any, own: list[int], whole: list[int], rest: str) -> list[int]:
    """The prompt's tokens, and after them such that read as `rest`.

    The `whole` text may be cut elsewhere than between the two ("x " and "y" become "x" and " y"), and some tokenizers
    put a space after a special token. What one makes of the rest alone, or behind a line break, may read as the rest;
    where a tokenizer changes what it reads (no capitals, unknown characters), nothing does, and the first will do.
    """
    before = _read(tokenizer, own)
    behind_break = tokenizer(f"\n{rest}", add_special_tokens=False).input_ids
    tries = [whole[len(own) :]] if whole[: len(own)] == own else []
    tries += [tokenizer(rest, add_special_tokens=False).input_ids]
    tries += [behind_break[start:] for start in range(1, min(4, len(behind_break)))]
    for ids in tries:
        if ids and _read(tokenizer, own + ids) == before + rest:
            return own + ids
    return own + tries[0]


def _read(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def token_texts(tokenizer: Any, size: int) -> list[str]:
    """What each of the first `size` tokens of the vocabulary reads as; of as many as there are.

    By the tokenizers library itself where that has all there is to say: a tenth of the time, half a second of 50,000.
    """
    alone = [[one] for one in range(min(size, len(tokenizer)))]
    at_once = getattr(getattr(tokenizer, "backend_tokenizer", None), "decode_batch", None)
    if at_once is not None and getattr(tokenizer, "clean_up_tokenization_spaces", None) is False:
        texts: list[str] = at_once(alone, skip_special_tokens=False)
        if texts[::_SAMPLED] == tokenizer.batch_decode(alone[::_SAMPLED]):
            return texts
    return tokenizer.batch_decode(alone)  # type: ignore[no-any-return]


def context_length(model: Any) -> int | None:
    """The most tokens that the model takes, where its config says."""
    config = model.config
    if callable(getattr(config, "get_text_config", None)):  # of a language tower beside others
        config = config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def pad(
    rows: list[Row], fill: int, device: torch.device, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows as a batch padded on the right, where padding can move no position.

    Args:
        rows, fill, device: at least one row; the token id to pad with; where the tensors shall lie.
        width (int, optional): S. Default: the longest row's tokens.

    Returns:
        input_ids int64 [B, S], attention_mask int64 [B, S], labels int64 [B, S] (-100 outside of targets).
    """
    longest = width or max(len(row.ids) for row in rows)
    input_ids, mask, labels = [], [], []
    for ids, prompt in rows:
        behind = longest - len(ids)
        input_ids.append([*ids, *[fill] * behind])
        mask.append([1] * len(ids) + [0] * behind)
        labels.append([-100] * prompt + [*ids[prompt:]] + [-100] * behind)
    return (
        torch.tensor(input_ids, device=device),
        torch.tensor(mask, device=device),
        torch.tensor(labels, device=device),
    )


def padding_id(tokenizer: Any) -> int:
    """A token id to pad with: pad, else eos, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return getattr(tokenizer, name)
    return 0
