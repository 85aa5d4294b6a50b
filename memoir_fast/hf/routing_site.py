"""`RoutingSite`: the early block at which prompts are read for their routing codes."""

from typing import Any, Protocol

import torch
from torch import nn

from memoir_fast.errors import MemoirError
from memoir_fast.hf.hidden import hidden_states
from memoir_fast.hf.own_pass import OwnPass
from memoir_fast.hf.partial_forward import blocks_around
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.autocast import without_autocast
from memoir_fast.modules.compiled import tracing
from memoir_fast.modules.prompt_sums import PromptSums
from memoir_fast.modules.routing_code import RoutingCode

_ROWS_AT_ONCE = 64  # embeddings that are looked up together: a product with the whole table each


class Reader(Protocol):
    """What is told of a forward pass."""

    def embed(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Token ids int64 [B, S] are embedded: these, or what is given back."""

    def enter(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Hidden states [B, S, H] enter the block: these, or what is given back."""


class RoutingSite:
    """Watches what a model embeds, and what enters one of its blocks.

    Args:
        model: the language model.
        layer (MemoirLinear): its edited layer, in the block of the routing code or behind it.
        code (RoutingCode): how routing codes are made.
        reader (Reader): what is told.
    """

    def __init__(self, model: Any, layer: MemoirLinear, code: RoutingCode, reader: Reader) -> None:
        self.code, self._layer, self._reader = code, layer, reader
        self._embedding: nn.Module = model.get_input_embeddings()
        blocks, index = blocks_around(model, layer)
        if not 0 <= code.block <= index:
            raise ValueError(f"routes must be made in a block from 0 to {index}, where the edited layer is")
        self.block = blocks[code.block]
        self._handles = [
            self._embedding.register_forward_pre_hook(self._embed, with_kwargs=True),
            self.block.register_forward_pre_hook(self._enter, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()

    def read(
        self,
        sums: PromptSums | None,
        said: torch.Tensor | None,
        hidden: torch.Tensor,
        ids: torch.Tensor,
        prompt: torch.Tensor,
    ) -> PromptSums:
        """Joins a part of B prompts to `sums` (None: it is the first), and what the model `said` before it."""
        if sums is not None and said is not None:
            sums = self.code.hear(sums, said)
        return self.code.read(sums, hidden, ids, prompt)

    def ids(self, call: Any, shape: tuple[int, ...]) -> torch.Tensor:
        """The token ids int64 [B, S] of a call: embedded, or those whose embeddings it was given; -1: unknown."""
        if call.ids is None:
            args, kwargs = call.given
            try:
                embedded = hidden_states(args, kwargs)
            except TypeError:
                raise MemoirError(
                    "a prompt's tokens were embedded by a module that was put into the model after its memory, where "
                    "they are not seen: save the memory, detach it, and load it again on the model as it is now"
                ) from None
            call.ids = self._looked_up(embedded)
        ids, device = call.ids, self.code.mean.device
        return ids if ids.shape == shape and ids.device == device else ids.to(device).reshape(shape)

    @torch.no_grad()
    @without_autocast()
    def _looked_up(self, embedded: torch.Tensor) -> torch.Tensor:
        """The tokens int64 [B, S] whose embeddings [B, S, H] are; -1 for what is no token's."""
        with OwnPass():
            table = self._embedding(torch.arange(len(self.code.weights), device=embedded.device))
        wide, squares = table.float(), table.float().pow(2).sum(dim=1)
        found = []
        for rows in embedded.flatten(0, 1).split(_ROWS_AT_ONCE):
            nearest = (2 * rows.float() @ wide.mT - squares).argmax(dim=1)
            found.append(torch.where((table[nearest] == rows).all(dim=1), nearest, -1))
        return torch.cat(found).view(embedded.shape[:2])

    def _embed(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if tracing() or OwnPass.current() is None:
            ids = next((one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)), None)
            if ids is not None and ids.dim() == 2:
                return _with(self._reader.embed(ids), ids, args, kwargs)
        return None

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if tracing() or OwnPass.current() is None:
            hidden = hidden_states(args, kwargs)
            return _with(self._reader.enter(hidden), hidden, args, kwargs)
        return None


def _with(new: torch.Tensor | None, old: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a hook gives back, so that `new`, where it is not None, takes the place of `old` among the arguments."""
    if new is None:
        return None
    given = tuple(new if one is old else one for one in args)
    return given, {name: new if one is old else one for name, one in kwargs.items()}
