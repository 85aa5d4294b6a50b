"""`RoutingCode`: packed bits that say what a prompt is about, from the hidden states that enter an early block.

The routing feature is a weighted mean of the prompt's tokens in the residual stream. A token weighs by how unexpected
it is in general. What is not the user's weighs nothing: special tokens, the chat template, what others say. The code is
the k largest of D random projections of the whitened feature.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from memoir_fast import ops
from memoir_fast.modules.autocast import without_autocast
from memoir_fast.modules.naming import present
from memoir_fast.modules.prompt_sums import OTHER, PLAIN, SENTENCES, USER, PromptSums

ENDS_SOFTLY, ENDS, BEGINS_WORD, INITIAL, ASKS = 1, 2, 4, 8, 16
"""What a token's text means for where sentences end, as bits: ends one where white space follows; ends one in any case;
begins with white space; is an initial or a title ("J", "Dr"), behind which a full stop ends nothing; has a question
mark."""


class _Speaks(NamedTuple):
    """Who speaks in a part of B prompts, of S tokens each; what is None is so for all of them alike."""

    role: torch.Tensor
    """int64 [B], behind the last token."""
    user: torch.Tensor | None
    """bool [B, S], which tokens are a user's; None: all, as there are no turns."""
    turned: torch.Tensor | None
    """bool [B, S], which tokens stand first in a turn; None: none."""
    reset: torch.Tensor | None
    """bool [B], in which a first turn was opened, so that all before starts anew; None: there was nothing, or none."""


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

    Raises:
        ValueError: k is not in 1 .. D, or weights and marks are of different lengths.

    Example:
        >>> import torch
        >>> from memoir_fast.modules.routing_code import RoutingCode
        >>> code = RoutingCode(torch.ones(9), torch.zeros(9).byte(), torch.zeros(4), torch.eye(4), 2, 1, 1.0)
        >>> ids = torch.tensor([[3, 5]])
        >>> sums = code.read(None, torch.tensor([[[1.0, 5, 0, 0], [1, 0, 0, 0]]]), ids, ids > 0)
        >>> code.masks(sums)[0, 0].tolist()
        [3, 0, 0, 0]
    """

    weights: torch.Tensor
    marks: torch.Tensor
    mean: torch.Tensor
    projection: torch.Tensor
    order: torch.Tensor
    slots: torch.Tensor
    weight_of: torch.Tensor
    meaning: torch.Tensor
    turn_marks: torch.Tensor
    any_token: torch.Tensor
    inside_mark: torch.Tensor
    no_token: torch.Tensor
    zero: torch.Tensor
    nothing: torch.Tensor
    alike: torch.Tensor

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
        if len(weights) != len(marks):
            raise ValueError(f"each token has a weight and a mark, got {len(weights)} weights and {len(marks)} marks")
        self.register_buffer("weights", weights)
        self.register_buffer("marks", marks)
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)
        self.k, self.block, self.fade = k, block, fade
        self.opened, self.closed = [tuple(one) for one in opened], [tuple(one) for one in closed]
        self._tail = max([2, *(len(one) - 1 for one in (*self.opened, *self.closed))])
        self._make_tables()
        self.register_buffer("alike", torch.arange(len(weights), device=weights.device), persistent=False)
        """int64 [V]: of tokens that are one word, in whatever case of letters, the first; of others, themselves."""

    def _make_tables(self) -> None:
        """What is looked up on the device: numbers that are made there at each call cost a launch each."""
        device, marks = self.weights.device, self.marks
        self.typical = float(self.weights.median())
        """The weight of a token that is not known: of embeddings of no token, or of an id beyond the vocabulary."""
        turns = [*self.opened, *self.closed]
        longest = max(map(len, turns), default=1)
        padded = [[-1] * (longest - len(one)) + [*one] for one in turns]
        marked = torch.tensor(padded, dtype=torch.int64, device=device).view(len(turns), longest)
        meant = torch.stack([marks & ENDS_SOFTLY, marks & ENDS, marks & BEGINS_WORD, ~marks & INITIAL, marks & ASKS], 1)
        tables = {
            "order": torch.arange(self.width, dtype=torch.int32, device=device),
            "slots": torch.arange(SENTENCES, device=device),
            # rows of each token, and behind them of what is none: an id beyond them, -1, and padding
            "weight_of": torch.cat([self.weights, self.weights.new_tensor([self.typical])]),
            "meaning": torch.cat([meant, meant.new_tensor([[0, 0, 0, 1, 0]])]).bool(),
            "turn_marks": marked,
            "any_token": marked < 0,
            # [closing marks, longest]: whether a mark that ends so many tokens later holds this one
            "inside_mark": (marked[len(self.opened) :] >= 0).flip(1) & (torch.arange(longest, device=device) > 0),
            "no_token": torch.full((1, self._tail), -1, device=device),
            "zero": torch.zeros(1, dtype=torch.int64, device=device),
            "nothing": torch.zeros(1, device=device),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    @property
    def width(self) -> int:
        """D, bits of a code."""
        return self.projection.shape[1]

    @without_autocast()
    def read(self, sums: PromptSums | None, hidden: torch.Tensor, ids: torch.Tensor, real: torch.Tensor) -> PromptSums:
        """Joins further tokens: hidden [B, S, H] entering the block, ids int64 [B, S], real bool [B, S] (no padding).

        `sums` is None before the first. In whatever parts a prompt comes, the sums are the same but for rounding; where
        a part ends within a mark of several tokens that closes a turn, those of its tokens that have come weigh as the
        user's, since what they begin is not known yet. Nothing is read back from the device.
        """
        whole = self._whole(sums, ids, real)
        speaks = self._roles(sums, whole, ids.shape[1])
        known = self._known(whole)
        weight = self._weight(known, real, speaks)
        weighty, begins, asks, ended = self._sentences(sums, known, weight, real, speaks)
        sentence = begins.cumsum(dim=1)  # 0 goes on with the one that is being read
        last = sentence[:, -1:]
        own = (last - sentence)[:, None, :] == self.slots[:, None]  # [B, Q, S]
        hidden = torch.where(real[..., None], hidden.float(), self.nothing)
        size = hidden.pow(2).mean(dim=2).sqrt().clamp(min=1e-6)
        share = own * weight[:, None]
        new, mass = torch.bmm(share / size[:, None], hidden), share.sum(dim=2)
        # a turn that opens ends the latest one: what was said before is no question any more
        if speaks.turned is not None:
            turns = speaks.turned.cumsum(dim=1)
            weighty = weighty & (turns == turns[:, -1:])
        own = own & weighty[:, None]
        asked, latest = (own & asks[:, None]).any(dim=2), own.any(dim=2)
        tail = whole[:, -self._tail :]
        words = torch.where(weighty, whole[:, -ids.shape[1] :], self.no_token[:, :1])
        if sums is None:
            return PromptSums(new, mass, asked, latest, speaks.role, ended, words, tail)

        earlier_words = sums.words
        if speaks.turned is not None:
            earlier_words = torch.where(speaks.turned.any(dim=1, keepdim=True), self.no_token[:, :1], earlier_words)
        words = torch.cat([earlier_words, words], dim=1)

        before = self.slots - last  # [B, Q]: in which slot of `sums` what now has this one was
        stays, before = before >= 0, before.clamp(min=0)
        if speaks.reset is not None:
            stays = stays & ~speaks.reset[:, None]
        same_turn = stays if speaks.turned is None else stays & ~speaks.turned.any(dim=1, keepdim=True)
        earlier = sums.sums.gather(1, before[..., None].expand_as(sums.sums))
        new = new + torch.where(stays[..., None], earlier, self.nothing)
        mass = mass + torch.where(stays, sums.mass.gather(1, before), self.nothing)
        asked = asked | same_turn & sums.asks.gather(1, before)
        latest = latest | same_turn & sums.latest.gather(1, before)
        return PromptSums(new, mass, asked, latest, speaks.role, ended, words, tail)

    def weigh(self, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Which of B prompts, ids int64 [B, S] and real bool [B, S], have a token that weighs anything, bool [B]."""
        whole = self._whole(None, ids, real)
        speaks = self._roles(None, whole, ids.shape[1])
        return (self._weight(self._known(whole), real, speaks) > 0).any(dim=1)

    def hear(self, sums: PromptSums, ids: torch.Tensor) -> PromptSums:
        """Takes note of tokens int64 [B, S] that the model said: they weigh nothing, but may open or close a turn."""
        whole = self._whole(sums, ids, ids >= 0)
        role = self._roles(sums, whole, ids.shape[1]).role
        ended, tail = torch.ones_like(sums.ended), whole[:, -self._tail :]
        return PromptSums(sums.sums, sums.mass, sums.asks, sums.latest, role, ended, sums.words, tail)

    def features(self, sums: PromptSums) -> torch.Tensor:
        """Features float32 [B, 3, H], any of which may match.

        Of all that the user said, where a sentence counts the less the more was said behind it; of the latest question
        of the latest turn, or the first feature again where it has no question mark; of the latest turn as a whole. For
        a prompt of one sentence they are the same. The background mean, which matches nothing, where no token weighs.
        """
        later = sums.mass.cumsum(dim=1) - sums.mass
        everything = torch.exp(later / -self.fade)
        asking = sums.asks.cumsum(dim=1)
        question = (sums.asks & (asking == 1)).float()
        asked = torch.where(asking[:, -1:] > 0, question, everything)
        shares = torch.stack([everything, asked, sums.latest.float()], dim=1)  # [B, 3, Q]
        weight = (sums.mass[:, None] * shares).sum(dim=2, keepdim=True)
        total = torch.bmm(shares, sums.sums)
        return torch.where(weight > 0, total / weight, self.mean)

    @without_autocast()
    def masks(self, sums: PromptSums) -> torch.Tensor:
        """The codes of B prompts, packed: int32 [B, 3, W]."""
        features = self.features(sums)
        return self.packed(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def said(self, sums: PromptSums) -> torch.Tensor:
        """Which tokens the latest turn of B prompts has, by `alike`, bool [B, 1 + V]; see `naming.present`."""
        size = len(self.weights)
        known = sums.words.clamp(min=0, max=size - 1)
        return present(torch.where(sums.words == known, self.alike[known], -1), size)

    @without_autocast()
    def packed(self, features: torch.Tensor) -> torch.Tensor:
        """Features float32 [N, H] -> codes int32 [N, W]: the k largest projections, signed; the lower index on ties."""
        projected = (features - self.mean) @ self.projection
        # TopHash chooses by magnitude: from the least of them on, that is the order of the signed values
        return ops.tophash(projected - projected.amin(dim=1, keepdim=True), self.k, self.order, check=False)[0]

    def _whole(self, sums: PromptSums | None, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Ids int64 [B, S] behind those before them, [B, T + S]; -1 where there is padding or no token before."""
        tail = self.no_token.expand(len(ids), -1) if sums is None else sums.tail
        return torch.cat([tail, torch.where(real, ids, self.no_token[:, :1])], dim=1)

    def _known(self, whole: torch.Tensor) -> torch.Tensor:
        """The rows of ids in the tables; below 0 and beyond the vocabulary, the last."""
        return whole.clamp(min=-1, max=len(self.weights))

    def _weight(self, known: torch.Tensor, real: torch.Tensor, speaks: "_Speaks") -> torch.Tensor:
        """Of each of the last S tokens of [B, T + S], its weight, [B, S]."""
        counts = real if speaks.user is None else speaks.user & real
        return self.weight_of[known[:, -real.shape[1] :]] * counts

    def _sentences(
        self, sums: PromptSums | None, known: torch.Tensor, weight: torch.Tensor, real: torch.Tensor, speaks: "_Speaks"
    ) -> tuple[torch.Tensor, ...]:
        """Per token bool [B, S]: whether it weighs anything, whether a sentence begins with it, whether it asks.

        Behind them, whether a sentence has ended behind the last that weighs anything, bool [B].
        """
        size = real.shape[1]
        soft, end, word, full, asks = self.meaning[known].unbind(dim=2)
        ends = soft[:, -size - 1 : -1] & word[:, -size:] & full[:, -size - 2 : -2] | end[:, -size - 1 : -1]
        if speaks.turned is not None:
            ends = ends | speaks.turned
        # a sentence begins with the first weighty token behind an end; ends without such a token between are one
        count = (ends & real).cumsum(dim=1)
        if sums is not None:
            count = count + sums.ended[:, None]
        weighty = weight > 0
        at = (count * weighty).cummax(dim=1).values
        seen = torch.cat([self.zero.expand(len(at), 1), at[:, :-1]], dim=1)  # ends before the latest weighty token
        return weighty, at > seen, asks[:, -size:], count[:, -1] > at[:, -1]

    def _roles(self, sums: PromptSums | None, whole: torch.Tensor, size: int) -> "_Speaks":
        """Who speaks among the last `size` of the ids [B, T + size]."""
        role = self.zero.expand(len(whole)) if sums is None else sums.role
        if not self.opened:
            return _Speaks(role, None, None, None)
        longest, marks = self.turn_marks.shape[1], len(self.opened)
        ends_here = whole.unfold(1, longest, 1)[:, -size:, None]  # [B, size, 1, longest]
        found = ((ends_here == self.turn_marks) | self.any_token).all(dim=3)  # [B, size, marks]
        opened = found[..., :marks].any(dim=2)
        # the latest mark so far: twice its place, odd where it opens a turn of the user's; 0 where there is none
        place = torch.arange(2, 2 * size + 2, 2, device=whole.device)
        event = ((place + opened) * found.any(dim=2)).cummax(dim=1).values
        after = event & 1
        begun, role_after = opened.any(dim=1), OTHER - after[:, -1]
        reset = None
        if sums is None:
            plain, role = ~begun, role_after * begun
        else:
            reset = (role == PLAIN) & begun
            plain = (role == PLAIN) & ~begun  # a closing mark means nothing before a turn was opened: it may be padding
            after = after | (event == 0) & (role == USER)[:, None]
            role = torch.where((event[:, -1] > 0) & ~plain, role_after, role)
        user = (after > opened) | plain[:, None]  # of truth values, a > b is a and not b, in one operation
        if max(map(len, self.closed), default=1) > 1:
            # a mark's last token tells it; those before it are no user's either
            behind = F.pad(found[..., marks:], (0, 0, 0, longest - 1)).unfold(1, longest, 1)
            user = user > (behind & self.inside_mark).flatten(2).any(dim=2)
        return _Speaks(role, user, opened, reset)

    def _apply(self, fn, recurse: bool = True) -> "RoutingCode":  # type: ignore[no-untyped-def]
        kept = {name: getattr(self, name) for name in ("weights", "mean", "projection", "weight_of", "nothing")}
        super()._apply(fn, recurse)
        for name, value in kept.items():  # they stay float32 when the model changes dtype
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def _load_from_state_dict(self, *args) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args)
        self._make_tables()

    def extra_repr(self) -> str:
        return f"width={self.width}, k={self.k}, block={self.block}"
