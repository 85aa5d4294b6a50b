"""What every recipe needs to learn an edit: the model, the layer, the prefixes, and the request as token rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from memoir_fast.editing.prefixes import with_prefix
from memoir_fast.editing.request import Edit, Row, context_length, prompt_ids, row
from memoir_fast.editing.trunk import layer_input
from memoir_fast.modules import MemoirLinear
from memoir_fast.presets import device_of


class Request(NamedTuple):
    """One edit, ready to be learned: its rows (plain prompt first), mask int32 [W] and columns int32 [k]."""

    edit: Edit
    rows: list[Row]
    mask: torch.Tensor
    columns: torch.Tensor


@dataclass
class EditContext:
    """A model with a memory, and what edits of it have in common."""

    model: Any
    tokenizer: Any
    layer: MemoirLinear
    prefixes: Sequence[str]
    irrelevant_row: Row

    def rows(self, edit: Edit) -> list[Row]:
        """Token rows of an edit: the prompt, then the prompt after each prefix, as far as the context has room."""
        longest = context_length(self.model)
        plain = row(self.tokenizer, edit.prompt, edit.target, longest)
        prefixed = [row(self.tokenizer, with_prefix(text, edit.prompt), edit.target) for text in self.prefixes]
        return [plain, *(one for one in prefixed if longest is None or len(one.ids) <= longest)]

    def hash(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask int32 [W] and columns int32 [k] of a prompt, run by itself as a query would be."""
        ids = torch.tensor([prompt_ids(self.tokenizer, prompt)], device=device_of(self.model))
        x = layer_input(self.model, self.layer, input_ids=ids, attention_mask=torch.ones_like(ids))
        mask, columns = self.layer.tophash(x)
        return mask[0], columns[0]

    def request(self, edit: Edit, rows: list[Row]) -> Request:
        """The edit with its rows and its mask. ValueError where the prompt's activations are not finite."""
        try:
            mask, columns = self.hash(edit.prompt)
        except ValueError as error:
            raise ValueError(f"the model's activations on {edit.prompt!r} cannot be hashed: {error}") from error
        return Request(edit, rows, mask, columns)
