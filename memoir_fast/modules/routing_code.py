"""`RoutingCode`: packed bits that say what a prompt is about, from the hidden states that enter an early block.

The routing feature is a weighted mean of the prompt's tokens in the residual stream. A token weighs by how unexpected
it is in general. What is not the user's weighs nothing: special tokens, the chat template, what others say. The code is
the k largest of D random projections of the whitened feature.
"""

from collections.abc import Sequence

import torch
from torch import nn

from memoir_fast import ops
from memoir_fast.modules.prompt_sums import OTHER, PLAIN, SENTENCES, USER, PromptSums

QUERIES = 3
"""Codes of a prompt, of which any may match; see `RoutingCode.features`."""

ENDS_SOFTLY, ENDS, BEGINS_WORD, INITIAL, ASKS = 1, 2, 4, 8, 16
"""What a token's text means for where sentences end, as bits: ends one where white space follows; ends one in any case;
begins with white space; is an initial or a title ("J", "Dr"), behind which a full stop ends nothing; has a question
mark."""


class RoutingCode(nn.Module):
    """Makes the routing codes of prompts.

    Args:
        weights (Tensor): float32 [V], the weight of each token id.
        marks (Tensor): uint8 [V], what each token means for sentences: a sum of the bits above.
        mean (Tensor): float32 [H], the background prompts' mean feature.
        projection (Tensor): float32 [H, D], whitening and random rotation in one.
        k (int): bits set in a code.
        block (int): the block whose input is read.
        fade (float): weight of later text behind which an earlier sentence counts 1 / e.
        opened, closed (sequences of token ids): what opens a user's turn, and what closes it; empty without a template.

    Example:
        >>> import torch
        >>> from memoir_fast.modules.routing_code import RoutingCode
        >>> code = RoutingCode(torch.ones(9), torch.zeros(9).byte(), torch.zeros(4), torch.eye(4), 2, 1, 1.0)
        >>> ids = torch.tensor([[3, 5]])
        >>> sums = code.read(code.begin(1), torch.tensor([[[1.0, 5, 0, 0], [1, 0, 0, 0]]]), ids, ids > 0)
        >>> code.masks(sums)[0, 0].tolist()
        [3, 0, 0, 0]
    """

    weights: torch.Tensor
    marks: torch.Tensor
    mean: torch.Tensor
    projection: torch.Tensor
    order: torch.Tensor

    def __init__(
        self,
        weights: torch.Tensor,
        marks: torch.Tensor,
        mean: torch.Tensor,
        projection: torch.Tensor,
        k: int,
        block: int,
        fade: float,
        opened: Sequence[Sequence[int]] = (),
        closed: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        if not 1 <= k <= projection.shape[1]:
            raise ValueError(f"k must lie in [1, D = {projection.shape[1]}], got {k}")
        self.register_buffer("weights", weights)
        self.register_buffer("marks", marks)
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)
        order = torch.arange(projection.shape[1], dtype=torch.int32, device=projection.device)
        self.register_buffer("order", order, persistent=False)
        self.k, self.block, self.fade = k, block, fade
        self.typical = float(weights.median())
        """The weight of a token that is not known, as where a model is given embeddings of no token."""
        self.opened, self.closed = [tuple(one) for one in opened], [tuple(one) for one in closed]
        self._tail = max([2, *(len(one) - 1 for one in (*self.opened, *self.closed))])

    @property
    def width(self) -> int:
        """D, bits of a code."""
        return self.projection.shape[1]

    def begin(self, batch: int, hidden: int | None = None) -> PromptSums:
        """Before the first token of B prompts, of hidden states as wide as the mean, or of `hidden` numbers."""
        return PromptSums.empty(batch, len(self.mean) if hidden is None else hidden, self._tail, self.mean.device)

    def read(self, sums: PromptSums, hidden: torch.Tensor, ids: torch.Tensor, real: torch.Tensor) -> PromptSums:
        """Joins further tokens: hidden [B, S, H] entering the block, ids int64 [B, S], real bool [B, S] (no padding).

        In whatever parts a prompt comes, the sums are the same but for rounding. Nothing is read back from the device.
        """
        weight, begins, asks, turned, role, ended, tail, reset = self._weighed(sums, ids, real)
        sentence = begins.cumsum(dim=1)  # 0 goes on with the one that is being read
        last = sentence[:, -1:]
        slots = torch.arange(SENTENCES, device=ids.device)
        own = (last - sentence)[:, None, :] == slots[:, None]  # [B, Q, S]
        hidden = torch.where(real[..., None], hidden.float(), 0.0)
        size = hidden.pow(2).mean(dim=2).sqrt().clamp(min=1e-6)
        share = own * weight[:, None]
        new, mass = torch.bmm(share / size[:, None], hidden), share.sum(dim=2)

        before = slots - last  # [B, Q]: in which slot of `sums` what now has this one was
        stays = (before >= 0) & ~reset[:, None]
        before = before.clamp(min=0)
        new = new + torch.where(stays[..., None], sums.sums.gather(1, before[..., None].expand_as(sums.sums)), 0.0)
        mass = mass + torch.where(stays, sums.mass.gather(1, before), 0.0)
        # a turn that opens ends the latest one: what was said before is no question any more
        turns = turned.cumsum(dim=1)
        current = (turns == turns[:, -1:])[:, None]
        same_turn = stays & ~turned.any(dim=1, keepdim=True)
        weighty = (weight > 0)[:, None] & current
        asked = (own & asks[:, None] & weighty).any(dim=2) | same_turn & sums.asks.gather(1, before)
        latest = (own & weighty).any(dim=2) | same_turn & sums.latest.gather(1, before)
        return PromptSums(new, mass, asked, latest, role, ended, tail)

    def hear(self, sums: PromptSums, ids: torch.Tensor) -> PromptSums:
        """Takes note of tokens int64 [B, S] that the model said: they weigh nothing, but may open or close a turn."""
        real = ids >= 0
        _, _, _, _, role, _, tail, _ = self._weighed(sums, ids, real)
        return PromptSums(sums.sums, sums.mass, sums.asks, sums.latest, role, torch.ones_like(sums.ended), tail)

    def features(self, sums: PromptSums) -> torch.Tensor:
        """Features float32 [B, 3, H], any of which may match.

        Of all that the user said, where a sentence counts the less the more was said behind it; of the latest question
        of the latest turn, or the first feature again where it has no question mark; of the latest turn as a whole. For
        a prompt of one sentence they are the same. The background mean, which matches nothing, where no token weighs.
        """
        later = sums.mass.cumsum(dim=1) - sums.mass
        everything = self._averaged(sums, torch.exp(-later / self.fade))
        question = sums.asks & (sums.asks.cumsum(dim=1) == 1)
        asked = torch.where(
            sums.asks.any(dim=1, keepdim=True), self._averaged(sums, question.to(later.dtype)), everything
        )
        return torch.stack([everything, asked, self._averaged(sums, sums.latest.to(later.dtype))], dim=1)

    def masks(self, sums: PromptSums) -> torch.Tensor:
        """The codes of B prompts, packed: int32 [B, 3, W]."""
        features = self.features(sums)
        return self.packed(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def packed(self, features: torch.Tensor) -> torch.Tensor:
        """Features float32 [N, H] -> codes int32 [N, W]: the k largest projections, signed; the lower index on ties."""
        projected = (features - self.mean) @ self.projection
        # TopHash chooses by magnitude: from the least of them on, that is the order of the signed values
        return ops.tophash(projected - projected.amin(dim=1, keepdim=True), self.k, self.order, check=False)[0]

    def _averaged(self, sums: PromptSums, share: torch.Tensor) -> torch.Tensor:
        """The weighted mean [B, H] over sentences that count by `share` [B, Q]."""
        weight = (sums.mass * share).sum(dim=1, keepdim=True)
        total = torch.bmm(share[:, None], sums.sums)[:, 0]
        return torch.where(weight > 0, total / weight.clamp(min=1e-20), self.mean)

    def _weighed(self, sums: PromptSums, ids: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Per token [B, S]: its weight, whether a sentence begins with it, whether it asks, whether a turn opens there.

        Behind the last of them: the role [B], whether a sentence has ended [B], the tail [B, T]; and in which rows a
        first turn was opened, so that all before starts anew [B].
        """
        size = ids.shape[1]
        whole = torch.cat([sums.tail, torch.where(real, ids, -1)], dim=1)
        role, user, reset, turned = self._roles(sums.role, whole, size)
        weight = self.weights[ids.clamp(min=0, max=len(self.weights) - 1)]
        weight = torch.where(user & real, torch.where(ids < 0, self.typical, weight), 0.0)
        known = whole.clamp(min=0, max=len(self.marks) - 1)
        marks = torch.where(whole < 0, 0, self.marks[known].int())
        now, before, earlier = marks[:, -size:], marks[:, -size - 1 : -1], marks[:, -size - 2 : -2]
        soft = (before & ENDS_SOFTLY).bool() & (now & BEGINS_WORD).bool() & ~(earlier & INITIAL).bool()
        ends = (soft | (before & ENDS).bool() | turned) & real
        # a sentence begins with the first weighty token behind an end; ends without such a token between are one
        count = ends.cumsum(dim=1) + sums.ended[:, None]
        weighty = weight > 0
        at = torch.where(weighty, count, 0).cummax(dim=1).values
        seen = torch.cat([torch.zeros_like(at[:, :1]), at[:, :-1]], dim=1)  # ends before the latest weighty token
        begins = weighty & (count > seen)
        ended, tail = count[:, -1] > at[:, -1], whole[:, -self._tail :]
        return weight, begins, (now & ASKS).bool(), turned, role, ended, tail, reset

    def _roles(self, role: torch.Tensor, whole: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
        """Who speaks among the last `size` of the ids [B, T + size]; `role` int64 [B] says who spoke before.

        Returns:
            The role behind the last token, int64 [B]; which tokens are a user's, bool [B, size]; in which rows a first
            turn was opened, bool [B]; which tokens stand first in a turn, bool [B, size].
        """
        none = torch.zeros(len(whole), size, dtype=torch.bool, device=whole.device)
        if not self.opened:
            return role, ~none, none[:, 0], none
        opened, closed = _found(whole, size, self.opened), _found(whole, size, self.closed)
        place = torch.arange(1, size + 1, device=whole.device).expand_as(opened)
        event = torch.where(opened | closed, place, 0).cummax(dim=1).values
        kind = torch.where(opened, USER, OTHER)
        after = torch.where(event > 0, kind.gather(1, (event - 1).clamp(min=0)), role[:, None])
        begun = opened.any(dim=1)
        plain = (role == PLAIN) & ~begun  # a closing mark means nothing before a turn was opened: it may be padding
        first = (role == PLAIN) & begun
        after = torch.where(plain[:, None], PLAIN, after)
        before_first = first[:, None] & ~(opened.int().cumsum(dim=1) > 0)
        after = torch.where(before_first, OTHER, after)
        user = (after == USER) & ~opened | plain[:, None]
        for mark in self.closed:  # its tokens before the last, which alone is known to end the turn
            ended = _found(whole, size, [mark])
            for back in range(1, min(len(mark), size)):
                user[:, : size - back] &= ~ended[:, back:]
        return after[:, -1], user, first, opened

    def _apply(self, fn, recurse: bool = True) -> "RoutingCode":  # type: ignore[no-untyped-def]
        kept = {name: getattr(self, name) for name in ("weights", "mean", "projection")}
        super()._apply(fn, recurse)
        for name, value in kept.items():  # they stay float32 when the model changes dtype
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        return f"width={self.width}, k={self.k}, block={self.block}"


def _found(whole: torch.Tensor, size: int, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Where one of the sequences ends, bool [B, size], among the last `size` of the ids [B, T + size]."""
    found = torch.zeros(len(whole), size, dtype=torch.bool, device=whole.device)
    for sequence in sequences:
        same = torch.ones_like(found)
        for back, token in enumerate(reversed(sequence)):
            same &= whole[:, whole.shape[1] - size - back : whole.shape[1] - back] == token
        found |= same
    return found
