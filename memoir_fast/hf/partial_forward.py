"""Runs only what lies behind the edited layer: the blocks after it and the head, by the model's own code."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from memoir_fast.hf.buckets import Bucket, Positions, buckets, places
from memoir_fast.hf.hidden import hidden_states, with_hidden_states
from memoir_fast.hf.own_pass import OwnPass, uncompiled
from memoir_fast.hf.presets import plain_model
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.replaceable import Output


class LowerStates(NamedTuple):
    """What the lower layers give for a batch of rows: run once, since no edit changes it, and read at every step."""

    input_ids: torch.Tensor  # int64 [B, S]
    attention_mask: torch.Tensor  # int64 [B, S]
    x: torch.Tensor  # [B, S, D], input of the edited layer
    hidden: torch.Tensor  # [B, S, H], output of its block without an edit; its input, where that block has to run
    buckets: list[Bucket]  # the rows that the upper layers run together

    def select(self, rows: torch.Tensor) -> "LowerStates":
        """Some of the rows, marked in bool [B]."""
        mask = self.attention_mask[rows]
        return self._of(lambda part: part[rows], buckets(mask, self.hidden.shape[-1]))

    def only(self, bucket: Bucket) -> "LowerStates":
        """The rows of a bucket."""
        return self._of(bucket.of, [bucket])

    def _of(self, part: Callable[[torch.Tensor], torch.Tensor], together: list[Bucket]) -> "LowerStates":
        return LowerStates(part(self.input_ids), part(self.attention_mask), part(self.x), part(self.hidden), together)


class NotReached(RuntimeError):
    """A forward pass ended without a layer that was waited for."""


class _Reached(Exception):
    """Ends a forward pass behind the edited block."""


def layer_input(model: nn.Module, layer: nn.Module, **inputs: Any) -> torch.Tensor:
    """The input of `layer` [B, S, D] in `model(**inputs)`; what comes after it is not computed."""
    return layer_inputs(model, [layer], **inputs)[0]


def layer_inputs(model: nn.Module, layers: Sequence[nn.Module], **inputs: Any) -> list[torch.Tensor]:
    """The input of each layer, [B, S, D], in `model(**inputs)`; what comes after the last is not computed.

    The layers are in the order in which the model calls them.
    """
    found = _entering(model, layers, lambda args, _: args[0], inputs)
    return [x if x.dim() == 3 else x.view(*inputs["input_ids"].shape, -1) for x in found]  # all tokens in one row


def block_inputs(model: nn.Module, blocks: Sequence[nn.Module], **inputs: Any) -> list[torch.Tensor]:
    """The hidden states [B, S, H] that enter each block in `model(**inputs)`; what comes behind them is not computed.

    The blocks are in the order in which the model calls them.
    """
    return _entering(model, blocks, hidden_states, inputs)


def _entering(
    model: nn.Module, modules: Sequence[nn.Module], find: Callable[[Any, Any], torch.Tensor], inputs: dict[str, Any]
) -> list[torch.Tensor]:
    """What `find(args, kwargs)` finds in each module's call; the pass ends at the last."""
    seen: list[torch.Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(find(args, kwargs).detach())
        if len(seen) == len(modules):
            raise _Reached

    with uncompiled(model.modules()), OwnPass() as own, torch.no_grad(), suppress(_Reached):
        for module in modules:
            own.before(module, look, with_kwargs=True)
        model(**inputs, use_cache=False)
    if len(seen) < len(modules):
        raise NotReached("the model's forward pass did not reach the edited layer")
    return seen


class UpperLayers:
    """Runs the part of a model after its edited layer, by the model's own code.

    The decoder is called as ever, so that rotary embeddings, masks, windows and per-layer inputs are its own; its
    blocks before the edited layer are passed over, and the head sees only the positions asked for. Where the layer's
    output goes straight into the residual stream, the edited block is passed over too; where a norm follows (Gemma 2,
    Gemma 3), that block runs, from its recorded input. Other threads may use the model meanwhile.

    Args:
        model: a causal language model of transformers.
        layer (MemoirLinear): its edited layer.
    """

    def __init__(self, model: Any, layer: MemoirLinear) -> None:
        self._model, self._layer = model, layer
        self._plain: nn.Module = plain_model(model)
        self._decoder: nn.Module = getattr(self._plain, "base_model", self._plain)
        self._blocks, self._index = blocks_around(model, layer)
        self._inside = list(self._blocks[self._index].modules())  # where hooks on the edited layer may be passed over
        self._extra: int | None = None  # what a block returns behind its hidden states; None: it returns those alone
        self._straight: bool | None = None

    def fits(self) -> bool:
        """Whether the model still has the blocks that this was made for."""
        blocks, index = blocks_around(self._model, self._layer)
        return blocks is self._blocks and index == self._index

    @property
    def blocks_behind(self) -> int:
        """Blocks that every step runs."""
        return len(self._blocks) - self._index - (1 if self._straight in (None, True) else 0)

    @torch.no_grad()
    def lower(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> LowerStates:
        """Runs a batch of rows, padded on the right, up to the edited block's end; what is at padding may be anything
        finite."""
        together = buckets(attention_mask, self._layer.out_features)
        found = [self._lower(one.of(input_ids), one.of(attention_mask)) for one in together]
        if len(found) == 1:
            return LowerStates(input_ids, attention_mask, *found[0], together)
        whole = [part.new_zeros((*input_ids.shape, part.shape[-1])) for part in found[0]]
        for bucket, parts in zip(together, found, strict=True):
            for values, part in zip(whole, parts, strict=True):
                values[bucket.rows, : bucket.width] = part
        return LowerStates(input_ids, attention_mask, whole[0], whole[1], together)

    def _lower(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`LowerStates.x` and `hidden` of rows that are run together."""
        block = self._blocks[self._index]
        seen: dict[str, torch.Tensor] = {}

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["input"] = hidden_states(args, kwargs).detach()

        def layer_input(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen["x"] = args[0].detach().view(*input_ids.shape, -1)

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            self._extra = len(output) - 1 if isinstance(output, tuple) else None
            seen["output"] = (output[0] if isinstance(output, tuple) else output).detach()
            raise _Reached

        with self._own_pass(lambda x, y: y) as own, suppress(_Reached):
            own.before(block, enter, with_kwargs=True)
            own.before(self._layer, layer_input)
            own.after(block, leave)
            self._model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        if self._straight is None:
            self._straight = self._adds_up(input_ids[:1], attention_mask[:1], seen)
        return seen["x"], seen["output"] if self._straight else seen["input"]

    def logits(
        self,
        lower: LowerStates,
        residual: torch.Tensor,
        positions: Positions,
        further: Sequence[Sequence[Output]] = (),
    ) -> torch.Tensor:
        """Logits [T, V] at T positions; `residual` [B, S, O] joins the layer's output. Differentiable in residual.

        `further` gives, for each bucket of `lower`, the output of each further layer, of its input and its base layer's
        output; without it, they are the base layers. `positions` are marked in bool [B, S], or given as rows and
        columns, int64 [T] each, which asks nothing of the device.
        """
        asked, order = places(lower.buckets, positions)
        chosen: list[torch.Tensor] = []
        for number, (bucket, own) in enumerate(zip(lower.buckets, asked, strict=True)):

            def select(hidden: torch.Tensor, own: Positions = own) -> torch.Tensor:
                chosen.append(hidden[own])
                if len(chosen) < len(asked):
                    raise _Reached  # the head runs once, behind the last bucket: no weights are larger
                return (chosen[0] if order is None else torch.cat(chosen)[order])[None]

            part, added = (lower, residual) if order is None else (lower.only(bucket), bucket.of(residual))
            with suppress(_Reached):
                output = self._behind(part, added, further[number] if further else (), select)
        return output.logits[0]

    def _behind(
        self,
        lower: LowerStates,
        residual: torch.Tensor,
        further: Sequence[Output],
        select: Callable[[torch.Tensor], torch.Tensor],
    ) -> Any:
        """The model's output for rows that are run together, of the hidden states that `select` finds in theirs."""
        first = self._index if self._straight else self._index - 1  # the last block that is passed over
        with self._own_pass(lambda x, y: (y + residual).to(y.dtype)) as own, ExitStack() as replaced:
            for layer, output_of in zip(self._layer.further, further, strict=False):
                replaced.enter_context(layer.replacing_output(output_of))
            for block in self._blocks[: max(first, 0)]:
                own.instead(block, self._pass_over)
            if first >= 0:
                hidden = (lower.hidden + residual).to(lower.hidden.dtype) if self._straight else lower.hidden
                own.instead(self._blocks[first], lambda *_, **__: self._returned(hidden))
            own.after(self._decoder, lambda _, __, output: with_hidden_states(output, select))
            return self._model(input_ids=lower.input_ids, attention_mask=lower.attention_mask, use_cache=False)

    def _adds_up(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, seen: dict[str, torch.Tensor]) -> bool:
        """Whether the layer's output is added to its block's unchanged, so that changing one changes both alike."""
        outputs: list[torch.Tensor] = []

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append((output[0] if isinstance(output, tuple) else output).detach())
            raise _Reached

        wide = seen["output"][:1].double()
        change = wide.std() * torch.linspace(-1, 1, wide.shape[-1], dtype=torch.float64, device=wide.device)
        with self._own_pass(lambda x, y: y + change.to(y.dtype)) as own, suppress(_Reached):
            own.after(self._blocks[self._index], leave)
            self._model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        error = (outputs[0].double() - wide - change).norm() / change.expand_as(wide).norm()
        return bool(error < 0.05)

    @contextmanager
    def _own_pass(self, output: Output) -> Iterator[OwnPass]:
        """Within the block, passes of this thread see its hooks alone, and give `output` at the edited layer."""
        through = (self._model, self._plain, self._decoder, *self._blocks, *self._inside)
        with uncompiled(through), OwnPass() as own, self._layer.replacing_output(output):
            yield own

    def _pass_over(self, *args: Any, **kwargs: Any) -> Any:
        return self._returned(hidden_states(args, kwargs))

    def _returned(self, hidden: torch.Tensor) -> Any:
        return hidden if self._extra is None else (hidden, *[None] * self._extra)


def blocks_around(model: nn.Module, layer: nn.Module) -> tuple[nn.ModuleList, int]:
    """The list of the model's blocks, and the place in it of the block that holds `layer`."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for index, block in enumerate(module):
                if any(inner is layer for inner in block.modules()):
                    return module, index
    raise ValueError("the edited layer must lie in a block of the model, one of an nn.ModuleList")
