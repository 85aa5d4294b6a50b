"""What every recipe needs to learn an edit: the model, the layer, the prefixes, and the request as token rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from memoir_fast.core.edit import Edit
from memoir_fast.editing.interference import Interference
from memoir_fast.editing.wordings import rewordings, with_prefix
from memoir_fast.hf.partial_forward import UpperLayers, layer_input
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import Row, context_length, prompt_ids, row
from memoir_fast.modules import MemoirLinear


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
        """Changes memory [D, O] in place."""

    def reads(self) -> torch.Tensor | None:
        """The layer's inputs [tokens, k] at the edit's columns, on its plain row; None where they are not at hand."""
        return None

    def rows(self) -> torch.Tensor | slice:
        """Which rows of memory `write` changes, as an index."""
        return self.columns.long()


@dataclass
class EditContext:
    """A model with a memory, and what edits of it have in common."""

    model: Any
    tokenizer: Any
    layer: MemoirLinear
    prefixes: Callable[[int], Sequence[str]]  # the first so many
    irrelevant_row: Row
    interference: Interference = field(default_factory=Interference)

    _upper: UpperLayers | None = None

    @property
    def upper(self) -> UpperLayers:
        """The layers after the edited one, with what was found out about them."""
        if self._upper is None or not self._upper.fits():
            self._upper = UpperLayers(self.model, self.layer)
        return self._upper

    def rows(
        self, edit: Edit, prefixes: int = 0, reworded: int = 0, tokens: int | None = None, stop: bool = False
    ) -> list[Row]:
        """Token rows of an edit: the prompt, after each prefix, and reworded; `stop`: each closed by the end token.

        Of all but the first, those are left out for which the model's context, or `tokens` in all, has no room.
        """
        longest = context_length(self.model)
        end = self._end() if stop else []
        plain = row(self.tokenizer, edit.prompt, edit.target, longest)
        if longest is None or len(plain.ids) + len(end) <= longest:
            plain = plain._replace(ids=plain.ids + end)
        prompts = [with_prefix(text, edit.prompt) for text in self.prefixes(prefixes)]
        prompts += rewordings(edit.prompt, reworded)
        rows = [plain]
        for prompt in prompts:
            ids, length = row(self.tokenizer, prompt, edit.target)
            other = Row(ids + end, length)
            total = sum(len(one.ids) for one in (*rows, other))
            if (longest is None or len(other.ids) <= longest) and (tokens is None or total <= tokens):
                rows.append(other)
        return rows

    def _end(self) -> list[int]:
        """The id of the token with which the model ends an answer; none where the tokenizer names none."""
        end = getattr(self.tokenizer, "eos_token_id", None)
        return [] if end is None else [end]

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
