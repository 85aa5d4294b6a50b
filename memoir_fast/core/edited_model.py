"""`EditedModel`: a language model whose layer has a memory, or several, and whose sequences are followed."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from memoir_fast.config import MemoirConfig
from memoir_fast.core.background import irrelevant_prompts
from memoir_fast.core.calibration import Calibration
from memoir_fast.core.live_edits import LiveEdits
from memoir_fast.core.pages import page_edits
from memoir_fast.core.routing_code import THRESHOLD, make
from memoir_fast.core.subject import alike_tokens
from memoir_fast.distributed.row_parallel import Part
from memoir_fast.errors import MemoirError, UnsupportedModelError
from memoir_fast.hf.adapters import beneath_adapters, require_no_soft_prompt
from memoir_fast.hf.banks import Which, asked
from memoir_fast.hf.further import with_further
from memoir_fast.hf.partial_forward import NotReached, layer_input
from memoir_fast.hf.presets import complete, device_of, find_layer, plain_model, require_causal
from memoir_fast.hf.proof import TOKENS, Passes, prove
from memoir_fast.hf.routing import Route, Router
from memoir_fast.hf.tensor_parallel import part_of, require_served
from memoir_fast.hf.tokens import prompt_ids
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.further_linear import FurtherLinear
from memoir_fast.modules.memoir_linear import linear_shape
from memoir_fast.modules.routing_code import RoutingCode

_TAU_BEFORE_CALIBRATION = 0.5
_FEWEST = 40  # background prompts that a routing code can be made of; with fewer, it is made of the package's own


class EditedModel:
    """A language model with a memory in a layer, or in several, and the router of its sequences.

    Args:
        model, tokenizer: a causal language model of transformers and its tokenizer.
        config (MemoirConfig): settings; what it leaves open comes from the model's preset.
        code (RoutingCode, optional): how routing codes are made, where the config routes by these. Default: made here.
        background (sequence of str, optional): the prompts that it is made of. Default, and where there are fewer than
            40: the package's own.

    Raises:
        UnsupportedModelError, ValueError, MemoirError: see `Memoir.attach`. The model is then as it was.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: MemoirConfig,
        code: RoutingCode | None = None,
        background: Sequence[str] | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        require_causal(model)
        require_served(model)
        require_no_soft_prompt(model)
        self.config = with_further(complete(config, model), model)
        assert self.config.layer is not None
        if any(isinstance(module, MemoirLinear) for module in model.modules()):
            raise MemoirError("this model has a memory already; detach() it before another is attached")
        base = _layer(model, self.config.layer, tokenizer)
        part = part_of(plain_model(model), base, self.config.layer)
        further = [_layer(model, name, tokenizer) for name in self.names[1:]]
        if part is not None and further:
            raise UnsupportedModelError(
                "a model that lies on several processes cannot be given a memory of several layers: leave further out"
            )
        beside = [linear_shape(one)[1] for one in further]
        early = self.config.routing == "early"
        plain = Passes(model, _check_rows(tokenizer)) if self.config.check else None
        if early:
            if code is None:
                given = background if background is not None and len(background) >= _FEWEST else irrelevant_prompts()
                code = make(model, base, tokenizer, given, self.config.routing_block, self.config.seed)
                if part is not None:
                    _agree(code, part)
            self.config = self.config.replace(routing_block=code.block)
        first = THRESHOLD if early else _TAU_BEFORE_CALIBRATION
        tau = self.config.tau if isinstance(self.config.tau, float) else first
        assert self.config.k is not None
        self.layer = MemoirLinear(
            base,
            self.config.k,
            tau,
            self.config.seed,
            self.config.max_edits,
            code if early else None,
            self.config.max_pages,
            part,
            sum(beside),
        )
        if self.layer.code is not None:
            self.layer.code.alike.copy_(alike_tokens(tokenizer, len(self.layer.code.alike)))
        start = self.layer.out_features
        for one, outputs in zip(further, beside, strict=True):
            self.layer.further += (FurtherLinear(one, self.layer, slice(start, start + outputs)),)
            start += outputs
        if self.config.page_edits is None:
            self.config = self.config.replace(page_edits=page_edits(self.layer.in_features, self.config.k))
        self.prefixes: list[str] = []
        self.edits = LiveEdits(self.layer)
        """The live edits by id, a mapping: `edit` and `delete` change it."""
        self.calibration: Calibration | None = None
        """How tau was chosen; None where it was given, or there are too few edits yet."""
        self.background: torch.Tensor | None = None
        """Masks, or routing codes, int32 [M, W] of the irrelevant prompts of the latest calibration."""
        try:
            self._put((one.base, one) for one in (self.layer, *self.layer.further))
            plain_one = plain_model(model)
            self._router = Router(plain_one, getattr(plain_one, "base_model", plain_one), self.layer)
            if plain is not None:
                prove(plain, self.layer, self._router)
        except BaseException:
            if self.layer.router is not None:
                self._router.remove()
            self._take_off()
            raise

    def disabled(self) -> AbstractContextManager[None]:
        """Within the block, the model answers as if it had no memory."""
        return self._router.overridden(disabled=True)

    def routed(self, edit_id: int | Sequence[int]) -> AbstractContextManager[None]:
        """Within the block, every prompt (or each row of a batch its own) is routed to that edit; -1 for none."""
        ids = (edit_id,) if isinstance(edit_id, int) else tuple(edit_id)
        for one in ids:
            if one != -1:
                self.layer.store.require(one)
        return self._router.overridden(forced=ids)

    def prompts(self, lengths: int | Sequence[int]) -> AbstractContextManager[None]:
        """Within the block, only the first `lengths` tokens of each row, padding not counted, are its prompt.

        For teacher forcing: prompt and target go through the model in one pass, and the target must not be hashed.
        """
        given = (lengths,) if isinstance(lengths, int) else tuple(int(length) for length in lengths)
        if any(length < 1 for length in given):
            raise ValueError(f"prompt lengths must be at least 1, got {min(given)}")
        return self._router.overridden(lengths=given)

    def banks(self, which: Which) -> AbstractContextManager[None]:
        """Within the block, requests may follow edits of these banks too; without it, only those that are in none.

        Edits without a bank answer everybody, but give way to one of the same prompt in a bank that is asked for. It is
        no error to ask for a bank that holds no edit. The block holds for this thread or task alone; `model.generate`
        takes the same as `memoir_banks=...`, also into a thread of its own. A sequence keeps the route that was decided
        on its prompt; when a further turn is read, the banks in force then count.

        Args:
            which: a bank, or a set of banks, that all rows of a batch ask for; or a list with an entry for each row: a
                bank, several, or None. In `generate`, of each request, whatever the number of its beams.

        Raises:
            TypeError: it is neither. ValueError, by the forward pass: the list is not as long as the batch.

        Example:
            >>> result = memoir.edit("The capital of France is", "Rome", bank="acme")
            >>> asked = tokenizer("The capital of France is", return_tensors="pt")
            >>> with memoir.banks("acme"):
            ...     output = model.generate(**asked, max_new_tokens=2, do_sample=False)
            >>> memoir.last_routes[0].edit_id == result.edit_id
            True
            >>> output = model.generate(**asked, max_new_tokens=2, do_sample=False, memoir_banks=["globex"])
            >>> memoir.last_routes[0].edit_id
            -1
        """
        return self._router.overridden(asked_banks=asked(which))

    @property
    def last_routes(self) -> list[Route]:
        """Where the prompts of the latest prefill went, a row each: edit id (-1: none) and best overlap ratio.

        The latest of this thread or task; of any, where this one has had none. After `generate`, they are those of its
        own prompts, whatever other passes ran within it, such as those of a negative prompt.
        """
        return self._router.last_routes

    def followed(self, cache: Any) -> list[int]:
        """The edits that the sequences of a cache follow, a row each (-1: none); [] where nothing is known of it.

        `last_routes` says what was decided, this what the next decode step will do. Reading waits for the device.
        """
        return self._router.followed(cache)

    @property
    def tau(self) -> float:
        """The threshold on the overlap ratio that is in force."""
        return self.layer.tau

    def detach(self) -> Any:
        """Takes the memory off. The model is exactly the old one, and is returned."""
        self._take_off()  # first: without its router, the layer would take each token for a prompt
        self._router.remove()
        return self.model

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the edited layer and of the further ones."""
        assert self.config.layer is not None and not isinstance(self.config.further, int)
        return (self.config.layer, *self.config.further)

    def _take_off(self) -> None:
        self._put((one, one.base) for one in (self.layer, *self.layer.further))

    def _put(self, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
        """For each layer (old, new): the new one stands in the old one's place, which may be within adapters.

        The last one first: it waits for what the first decides.
        """
        for full, (old, new) in [*zip(self.names, pairs, strict=True)][::-1]:
            parent, _, name = full.rpartition(".")
            holder: Any = plain_model(self.model).get_submodule(parent)
            found = getattr(holder, name)
            while found is not old and found is not beneath_adapters(found):
                holder, name, found = found, "base_layer", found.base_layer
            setattr(holder, name, new)


def _layer(model: Any, name: str, tokenizer: Any) -> Any:
    """What a memory is put beside: the layer itself, or, where adapters do without its output, all of them."""
    layer, outermost = find_layer(model, name), plain_model(model).get_submodule(name)
    if layer is not outermost:
        try:
            layer_input(model, layer, input_ids=_check_rows(tokenizer).to(device_of(model)))
        except NotReached:
            return outermost
    return layer


def _agree(code: RoutingCode, part: Part) -> None:
    """Gives every process the first one's code: to the last bit, whatever made it."""
    for buffer in code.buffers():
        buffer.copy_(part.agreed(buffer))
    numbers = torch.tensor([code.block, code.fade], dtype=torch.float64, device=code.mean.device)
    block, fade = part.agreed(numbers).tolist()
    code.block, code.fade = int(block), fade


def _check_rows(tokenizer: Any) -> torch.Tensor:
    """The beginnings of two sentences, int64 [2, TOKENS]: what a model is checked with."""
    return torch.tensor([(prompt_ids(tokenizer, text) * TOKENS)[:TOKENS] for text in irrelevant_prompts()[:2]])
