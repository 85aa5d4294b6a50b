"""`Following`: reads the prompts of a pass, decides where they go, and goes on where the model speaks."""

from typing import Any

import torch

from memoir_fast.errors import MemoirError
from memoir_fast.hf import banks
from memoir_fast.hf.attention_mask import real_tokens
from memoir_fast.hf.call import Call
from memoir_fast.hf.overrides import Overrides, per_row
from memoir_fast.hf.routing_site import RoutingSite
from memoir_fast.hf.sequence_state import PromptsRead, SequenceState, TokenMean
from memoir_fast.modules import MemoirLinear
from memoir_fast.modules.routed import Routed


class Following:
    """What is done for the sequences of one pass, each in a row of its own. It keeps nothing: the pass's state does.

    Args:
        layer: the edited layer.
        number: the router's, by which states are told from those of another memory.
    """

    def __init__(self, layer: MemoirLinear, number: int) -> None:
        self._layer, self.number = layer, number
        self.site: RoutingSite | None = None
        """Where routing codes are made; None where masks route."""

    def speaking(self, call: Call, tokens: int, asked: Overrides) -> bool:
        """Whether the tokens of a pass are said by the model; else they are a prompt, or a part of one."""
        if call.state is None:
            return False
        prompt_end = call.prompt_end(asked)
        return call.length >= prompt_end if prompt_end is not None else tokens == 1

    def say(self, call: Call, x: torch.Tensor, asked: Overrides) -> Routed | None:
        """Goes on where the model speaks: inputs x [B, S, D]."""
        state = call.state
        _require_batch(state, x.shape[0])
        _require_known(state.undecided, asked)
        state.look_again(self._layer.view.store)
        state.say(self._spoken(call, x))
        routed: Routed | None = state.help(x.shape[1])
        return None if asked.disabled else routed

    def read(self, call: Call, x: torch.Tensor, asked: Overrides) -> Routed | None:
        """Reads a prompt or a part of one, x [B, S, D or H] at the place where routes are made, and decides.

        What was decided is in `call.last`.
        """
        state = call.state
        batch, tokens = x.shape[:2]
        _require_batch(state, batch)
        _require_known(state is not None and state.unread and asked.forced is None, asked)
        start, prompt_end = call.length, call.prompt_end(asked)
        real = real_tokens(call.attention_mask, start, batch, tokens, x.device)
        prompt, said = real, 0
        if asked.lengths is not None:
            prompt = real & (real.cumsum(dim=1) <= per_row(asked.lengths, batch, "prompts").to(x.device)[:, None])
        elif prompt_end is not None and start + tokens > prompt_end:
            said = start + tokens - prompt_end
            prompt = real & (torch.arange(start, start + tokens, device=x.device) < prompt_end)
        state = call.state = self._joined(call, x, prompt)
        self._decide(call, asked, batch)
        state.length += tokens - said
        state.end_prompt()
        helped = self._helped(state, real, prompt)
        if said:
            state.say(self._spoken(call, x)[:, tokens - said :])
            if state.left is not None:
                state.left = state.left - said
        elif prompt is not real:
            self._join_rest(call, x, real & ~prompt)
        return None if asked.disabled else state.routed(helped)

    def _joined(self, call: Call, x: torch.Tensor, prompt: torch.Tensor) -> Any:
        """The state of the call's sequences, with the prompt's tokens joined to it."""
        state, length = call.state, call.length
        if self.site is not None:
            count = prompt.sum(dim=1, keepdim=True, dtype=torch.float32)
            ids = self.site.ids(call, x.shape[:2])
            if state is None:
                return PromptsRead(self.site.read(None, None, x, ids, prompt), count, length, self.number)
            state.read(self.site.read(state.sums, state.said(), x, ids, prompt), count)
        elif state is None:
            return TokenMean(*self._mean(x, prompt), length=length, owner=self.number)
        else:
            state.read(*self._mean(x, prompt))
        return state

    def _spoken(self, call: Call, x: torch.Tensor) -> torch.Tensor:
        """What `say` takes of the tokens at hand: their layer inputs, or their ids."""
        return x if self.site is None else self.site.ids(call, x.shape[:2])

    def _join_rest(self, call: Call, x: torch.Tensor, after: torch.Tensor) -> None:
        """Joins tokens behind the prompts of a pass in which each row's prompt has a length of its own."""
        if self.site is None:
            call.state.read(*self._mean(x, after))
        else:
            ids = torch.where(after, self.site.ids(call, x.shape[:2]), -1)
            state = call.state
            state.read(self.site.code.hear(state.sums, ids), after.sum(dim=1, keepdim=True, dtype=torch.float32))

    def _helped(self, state: SequenceState, real: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor | None:
        """To which tokens bool [B, S] of a prompt's pass the memory adds; None: to all."""
        if state.left is None or prompt is real:
            return None
        after = real & ~prompt
        return ~after | (after.cumsum(dim=1) <= state.left.to(after.device)[:, None])

    def _decide(self, call: Call, asked: Overrides, batch: int) -> None:
        """Sets the route of the call's state, and how long the memory helps to say the target."""
        overlap: torch.Tensor | None = None
        state, chat = call.state, None
        device = state.route.device
        if asked.disabled:
            route = torch.full((batch,), -1, dtype=torch.int32, device=device)
        elif asked.forced is not None:
            route = per_row(asked.forced, batch, "routed").to(device, torch.int32)
        else:
            masks = self.site.code.masks(state.sums) if self.site else self._layer.hash_mean(state.mean, check=False)[0]
            which = banks.per_row(asked.asked_banks, batch, asked.generate_prompt is not None)
            route, overlap = self._layer.search(masks, which, self._words(state))
        if self.site is not None and self.site.code.opened:
            chat = state.sums.chat
        store = self._layer.view.store
        state.decide(route, store.help(route, chat), store)
        call.last = route, overlap

    def _words(self, state: Any) -> torch.Tensor | None:
        """The prompts' tokens, as a search takes them, where edits have subjects."""
        codes = self._layer.view.codes
        if self.site is None or codes is None or codes.names is None:
            return None
        return self.site.code.said(state.sums).to(codes.names.device)

    def _mean(self, x: torch.Tensor, marked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean float32 [B, D] of the marked tokens, NaN where there is none, and their count float32 [B, 1]."""
        mean = self._layer.mean(x, marked)
        return mean, marked.sum(dim=1, keepdim=True, dtype=torch.float32)


def _require_batch(state: SequenceState | None, batch: int) -> None:
    if state is not None and state.route.shape[0] != batch:
        raise ValueError(f"the cache holds {state.route.shape[0]} sequences, the model was called with {batch}")


def _require_known(cut: bool, asked: Overrides) -> None:
    """MemoirError where a cache was `cut`, so that what a pass is to follow is not known, and what it says counts."""
    if cut and not asked.disabled and not (asked.generation is not None and asked.generation.proposing):
        raise MemoirError(
            "a cache was cropped in the midst of a part of a prompt, and what is left of it does not say which edit it "
            "belongs to: crop to where such a part ended, or begin with an empty cache"
        )
