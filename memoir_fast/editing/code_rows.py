"""Routing codes of an edit: its rows, a threshold for each, and the prompts that should not match it and do."""

import random
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from memoir_fast.core.background import irrelevant_prompts
from memoir_fast.core.edit import Edit
from memoir_fast.core.routing_code import Asked, asked_by
from memoir_fast.core.subject import names_of
from memoir_fast.core.wordings import exchanged, rewordings
from memoir_fast.hf.chat import as_chat, user_text
from memoir_fast.hf.tokens import prompt_ids
from memoir_fast.modules import MemoirLinear, banks
from memoir_fast.modules.code_store import kept, kept_bits
from memoir_fast.modules.naming import named
from memoir_fast.modules.routing_code import RoutingCode
from memoir_fast.modules.search import shared_bits

_COPIES = 3  # scrambled copies that say how far a threshold may be raised
_OTHERS = 4  # stored prompts whose subjects are tried in this edit's prompt


class CodeRows(NamedTuple):
    """What an edit is stored as, n rows."""

    codes: torch.Tensor
    """int32 [n, W]."""
    min_overlap: torch.Tensor
    """int32 [n], thresholds in bits."""
    room: torch.Tensor
    """int32 [n], the least overlap in bits of a rewording of the edit: a higher threshold would lose it; 0 for rows of
    prompts that are kept, which lead to no edit."""
    quiet: tuple[str, ...]
    """Prompts that match it in spite of the thresholds, and should be answered as if it were not there."""
    names: torch.Tensor | None = None
    """int32 [n, P, T], the subject that prompts must name to match a row; see `naming`. None: none has any."""

    @property
    def spare(self) -> int:
        """Bits between the highest threshold and the least overlap of a rewording; below 0: they overlap."""
        leads = self.room > 0
        return int((self.room - self.min_overlap)[leads].min())


def forms(tokenizer: Any, code: RoutingCode, prompt: str) -> list[str]:
    """A prompt as it stands, and in the other form: as a user's turn in a chat, or what its user says, plainly.

    So an edit is found in a chat whether it was taught in one or not, and the other way round.
    """
    if not code.opened:
        return [prompt]
    said = user_text(tokenizer, prompt, code.opened, code.closed)
    other = said or as_chat(tokenizer, prompt)
    return [prompt, other] if other else [prompt]


def bare(tokenizer: Any, code: RoutingCode, prompt: str) -> str:
    """What is asked: the user's last words of a chat, or a plain prompt as it stands."""
    return (user_text(tokenizer, prompt, code.opened, code.closed) if code.opened else "") or prompt


def about(tokenizer: Any, code: RoutingCode, edit: Edit) -> torch.Tensor | None:
    """The tokens of an edit's subject, int32 [P, T], see `naming`; None where it has none.

    Raises:
        ValueError: a prompt or paraphrase does not name it, plainly or in a chat, as prompts are read.
    """
    if not edit.subject:
        return None
    texts = [text for one in (edit.prompt, *edit.paraphrases) for text in forms(tokenizer, code, one)]
    return names_of(tokenizer, code, edit.subject, [prompt_ids(tokenizer, text) for text in texts])


def require_weight(tokenizer: Any, code: RoutingCode, prompts: Sequence[str]) -> None:
    """ValueError where no token of a prompt weighs anything: all prompts of that kind have one code."""
    rows = [torch.tensor(prompt_ids(tokenizer, prompt)) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=-1).to(code.weights.device)
    for prompt, weighs in zip(prompts, code.weigh(ids, ids >= 0).tolist(), strict=True):
        if not weighs:
            raise ValueError(
                f"the prompt {prompt!r} says nothing by which it could be told from others: special tokens, blanks and "
                "what a chat template writes weigh nothing. Give one in which the user says something, or route by "
                'MemoirConfig(routing="paper")'
            )


def code_rows(
    model: Any, layer: MemoirLinear, tokenizer: Any, edit: Edit, others: Sequence[str], replaced: int | None = None
) -> CodeRows | None:
    """The rows of an edit; None where masks tell whom a prompt belongs to.

    A prompt that is kept gets a row too, which leads to no edit. One that follows another edit goes on to do so: it has
    none, and the thresholds of this edit's rows rise above it as far as they have room.

    Args:
        model, layer, tokenizer: the model, its edited layer with the rows that are there, and its tokenizer.
        edit (Edit): with its paraphrases, each a row of its own, and the prompts that it shall keep as they are.
        others (sequence of str): prompts of other edits; background prompts take their place where they are few.
        replaced (int, optional): the live edit in whose place this one comes.
    """
    code, store = layer.code, layer.codes
    if code is None or store is None:
        return None
    own, keep = (
        [text for one in texts for text in forms(tokenizer, code, one)]
        for texts in ((edit.prompt, *edit.paraphrases), edit.keep)
    )
    subject = about(tokenizer, code, edit)
    asked = bare(tokenizer, code, edit.prompt)
    copies = [*rewordings(asked, _COPIES), *(bare(tokenizer, code, one) for one in edit.paraphrases)]
    apart = [] if edit.subject else neighbours(tokenizer, code, asked, others)  # which do not name it
    parts = [own, keep, copies, apart]
    sizes = [len(part) for part in parts]
    found = asked_by(model, layer, tokenizer, code, [text for part in parts for text in part])
    made, words = (one.to(store.codes.device).split(sizes) for one in found)
    rows = made[0][:, 0].contiguous()
    again, near, kept_near = (_overlaps(one, rows) for one in (made[2], made[3], made[1]))  # [texts, n]
    free = _follow_nothing(layer, Asked(made[1], words[1]), edit.bank, replaced)
    away = kept(made[1][free, 0])
    near = torch.cat([near, kept_near[~free]])
    apart, keep = [*apart, *_where(keep, ~free)], _where(keep, free)
    kept_near = kept_near[free]
    most = int(again.amax(dim=1).min()) if copies else code.k
    subjects = None
    if subject is not None:  # a kept prompt that does not name it is kept whatever a prompt names
        subject = subject.to(rows.device)
        has = torch.cat([words[1].new_ones(len(rows)), named(subject[None], words[1][free])[:, 0]])
        subjects = torch.where(has[:, None, None], subject, -1)
    least = store.least_of(subjects).expand(len(rows) + len(away))
    kept_least, least = least[len(rows) :], least[: len(rows)]
    room = least.clamp(min=most)
    wanted = torch.minimum(torch.maximum(least, near.amax(dim=0) + 1), room) if apart else least
    matched = [
        *((kept_near >= wanted) & (kept_near >= kept_bits(code.k))).any(dim=1).tolist(),  # nearer than to its own row
        *(near >= wanted).any(dim=1).tolist(),
    ]
    quiet = tuple(text for text, one in zip([*keep, *apart], matched, strict=True) if one)
    return CodeRows(
        torch.cat([rows, away]),
        torch.cat([wanted, kept_least]),
        torch.cat([rows.new_full((len(rows),), most), rows.new_zeros(len(away))]),
        quiet,
        subjects,
    )


def _follow_nothing(layer: MemoirLinear, asked: Asked, bank: str, replaced: int | None) -> torch.Tensor:
    """Which of N prompts follow no edit but one that is replaced, bool [N]."""
    codes, words = asked
    if not len(codes):
        return torch.zeros(0, dtype=torch.bool, device=codes.device)
    which = [frozenset([bank] if bank else [])] * len(codes)
    found = banks.search(layer.store, layer.codes, codes, which, words)[0]
    return (found < 0) | (found == (-1 if replaced is None else replaced))


def _where(texts: Sequence[str], chosen: torch.Tensor) -> list[str]:
    return [text for text, one in zip(texts, chosen.tolist(), strict=True) if one]


def neighbours(tokenizer: Any, code: RoutingCode, asked: str, others: Sequence[str]) -> list[str]:
    """What is asked, of other subjects: its rarest words exchanged for those of other stored prompts."""
    draw = random.Random(zlib.crc32(asked.encode()))
    pool = [one for one in others if one != asked] if asked in others else others
    chosen = [bare(tokenizer, code, one) for one in draw.sample(pool, min(_OTHERS, len(pool)))]
    chosen += [one.partition("?")[0] + "?" for one in draw.sample(_questions(), _OTHERS - len(chosen))]
    made = dict.fromkeys(exchanged(tokenizer, code.weights, asked, one) for one in chosen)
    return [one for one in made if one.strip() and one != asked]


def _questions() -> list[str]:
    """The background prompts that ask; an answer follows each."""
    return [one for one in irrelevant_prompts() if "?" in one]


def _overlaps(codes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Codes int32 [N, 3, W], rows int32 [n, W] -> the most bits that any of the three shares, int32 [N, n]."""
    if not len(codes):
        return rows.new_zeros((0, len(rows)))
    shared = shared_bits(codes.flatten(0, 1), rows)
    return shared.view(len(codes), -1, len(rows)).amax(dim=1)
