"""What every recipe needs to learn an edit: the model, the layer, the prefixes, and the request as token rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from memoir_fast.core.edit import Edit
from memoir_fast.core.wordings import questions, rewordings
from memoir_fast.editing.code_rows import bare, forms
from memoir_fast.editing.interference import PageInterference
from memoir_fast.editing.wordings import with_prefix
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.chat import as_chat
from memoir_fast.hf.partial_forward import UpperLayers, layer_input
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import Row, context_length, prompt_ids, row, token_texts
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.autocast import without_autocast


@dataclass(frozen=True)
class Learned(ABC):
    """What was learned for one edit, not yet written anywhere."""

    edit: Edit
    mask: torch.Tensor  # int32 [W]
    columns: torch.Tensor  # int32 [k]
    steps: int
    loss: float

    @abstractmethod
    def write(self, memory: torch.Tensor) -> None:
        """Changes the page [D, O] in place that it was learned on."""

    def reads(self) -> torch.Tensor | None:
        """The edited layer's inputs [tokens, k] at the edit's columns, on its plain row; None where they are not at
        hand."""
        return None

    def rows(self) -> torch.Tensor | slice:
        """Which rows of the page `write` changes, as an index."""
        return self.columns.long()


@dataclass
class EditContext:
    """A model with a memory, and what edits of it have in common."""

    model: Any
    tokenizer: Any
    layer: MemoirLinear
    prefixes: Callable[[int], Sequence[str]]  # the first so many
    irrelevant_row: Row
    interference: PageInterference = field(default_factory=PageInterference)

    _upper: UpperLayers | None = None
    _begins_word: torch.Tensor | None = None

    @property
    def upper(self) -> UpperLayers:
        """The layers after the edited one, with what was found out about them."""
        if self._upper is None or not self._upper.fits():
            self._upper = UpperLayers(self.model, self.layer)
        return self._upper

    def begins_word(self, size: int, device: torch.device) -> torch.Tensor:
        """Which of V = `size` tokens begin with no letter or digit, bool [V]: behind a word, they leave it as it is."""
        found = self._begins_word
        if found is None or len(found) != size or found.device != device:
            begins = [not text[:1].isalnum() for text in token_texts(self.tokenizer, size)]
            found = self._begins_word = torch.tensor(begins + [True] * (size - len(begins)), device=device)
        return found

    def rows(
        self,
        edit: Edit,
        prefixes: int = 0,
        reworded: int = 0,
        tokens: int | None = None,
        stop: bool = False,
        chat: bool = False,
        asked: int = 0,
    ) -> list[Row]:
        """Token rows of an edit: the prompt, its paraphrases, the prompt after each prefix, asked, and reworded.

        `stop`: each closed by the end token. `chat`: the prompt in its other form too, see `both_forms`, and in a chat
        with the first prefix as its system prompt, where the template takes one.
        Of all but the first, those are left out for which the model's context, or `tokens` in all, has no room.
        """
        longest = context_length(self.model)
        end = self._end() if stop else []
        plain = row(self.tokenizer, edit.prompt, edit.target, longest)
        if longest is None or len(plain.ids) + len(end) <= longest:
            plain = plain._replace(ids=plain.ids + end)
        prompts = list(edit.paraphrases)
        prompts += self._forms_and_prefixed(edit.prompt, self.prefixes(prefixes), chat)
        prompts += [*questions(edit.prompt, asked), *rewordings(edit.prompt, reworded)]
        rows = [plain]
        for prompt in prompts:
            ids, length = row(self.tokenizer, prompt, edit.target)
            other = Row(ids + end, length)
            total = sum(len(one.ids) for one in (*rows, other))
            if (longest is None or len(other.ids) <= longest) and (tokens is None or total <= tokens):
                rows.append(other)
        return rows

    def target_tokens(self, edit: Edit, boundary: bool = False) -> tuple[int, int]:
        """How many tokens an edit's target has, plainly and in a chat; `boundary`: with the one behind it."""
        said = [row(self.tokenizer, prompt, edit.target) for prompt in self.both_forms(edit.prompt)]
        counts = [len(one.ids) - one.prompt + boundary for one in said]
        return counts[0], counts[-1]

    def both_forms(self, prompt: str) -> list[str]:
        """A prompt plainly, and in the tokenizer's chat template; one where it is known in one form only."""
        code = self.layer.code
        if code is None or not code.opened:
            return [prompt]
        found = forms(self.tokenizer, code, prompt)
        return found if found[0] == bare(self.tokenizer, code, prompt) else found[::-1]

    def _forms_and_prefixed(self, prompt: str, prefixes: Sequence[str], chat: bool) -> list[str]:
        behind = [with_prefix(text, prompt) for text in prefixes]
        forms = self.both_forms(prompt) if chat else []
        if len(forms) < 2:
            return behind
        plain, in_chat = forms
        other = in_chat if prompt == plain else plain
        led = as_chat(self.tokenizer, plain, prefixes[0]) if prefixes else None
        if led is None:
            return [other, *behind]
        # before a whole template a prefix is no chat: there the system prompt takes its place
        return [other, led, *(behind if prompt == plain else behind[1:])]

    def _end(self) -> list[int]:
        """The id of the token with which the model ends an answer; none where the tokenizer names none."""
        end = getattr(self.tokenizer, "eos_token_id", None)
        return [] if end is None else [end]

    @without_autocast()
    def hash(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask int32 [W] and columns int32 [k] of a prompt, run by itself as a query would be."""
        ids = torch.tensor([prompt_ids(self.tokenizer, prompt)], device=device_of(self.model))
        x = layer_input(self.model, self.layer, input_ids=ids, attention_mask=torch.ones_like(ids))
        masks, columns = self.hashed(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), [prompt])
        return masks[0], columns[0]

    def hashed(
        self, x: torch.Tensor, marked: torch.Tensor, prompts: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks int32 [E, W] and columns int32 [E, k] of E prompts, whose layer inputs are x [E, S, D].

        `marked` bool [E, S] are the tokens of the prompts.

        ValueError where a prompt's activations are not finite.
        """
        masks, columns = self.layer.hash(x, marked, check=False)
        for prompt, chosen in zip(prompts, columns[:, 0].tolist(), strict=True):
            if chosen < 0:
                raise ValueError(f"the model's activations on {prompt!r} must be finite, got NaN or infinity")
        return masks, columns


def gradient_of(loss: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """The gradient of a loss in what learning moves; see `gradients_of`."""
    return gradients_of(loss, [moved])[0]


def gradients_of(loss: torch.Tensor, moved: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The gradient of a loss, or of the sum of several in one tensor, in each of what learning moves.

    Raises:
        UnsupportedModelError: one is not reached by any.
    """
    every = torch.ones_like(loss)
    found = torch.autograd.grad(loss, list(moved), every, allow_unused=True) if loss.requires_grad else [None]
    reached = [one for one in found if one is not None]
    if len(reached) < len(moved):
        raise UnsupportedModelError(
            "an edit cannot be learned here: no gradient comes back through what lies behind the edited layer, as "
            "where activations are quantised too. Quantise weights alone, e.g. by torchao's Int8WeightOnlyConfig"
        )
    return reached


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes part in a gradient within the block.

    It holds for other threads too: they may run the model meanwhile, and not train it.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
