"""What is remembered of running sequences, beside their keys and values."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from memoir_fast.modules.mask_store import MaskStore
from memoir_fast.modules.prompt_sums import PromptSums
from memoir_fast.modules.routed import Routed, first_alike, follows_nothing

_PARTS_KEPT = 16  # parts of a prompt that `crop` can go back to

Change = Callable[[torch.Tensor], torch.Tensor]


class _Decided(NamedTuple):
    """What was followed when a further part of a prompt was read; see `SequenceState`."""

    route: torch.Tensor
    rows: torch.Tensor | None
    stamp: int
    left: torch.Tensor | None
    said: int  # tokens that `left` counts, behind the part before

    def each(self, change: Change) -> "_Decided":
        rows, left = (None if one is None else change(one) for one in (self.rows, self.left))
        return self._replace(route=change(self.route), rows=rows, left=left)


class Part(NamedTuple):
    """The end of a part of a prompt."""

    length: int
    """Positions up to there."""
    summary: Any
    """What had been read by then."""
    decided: _Decided | None = None
    """What it led to; None while that is in force."""


class SequenceState(ABC):
    """What is remembered of the B sequences of one cache; it is moved with the cache's rows and positions.

    Args:
        length (int): positions in the cache, padding included.
        owner (int): the router whose store the routes point into.
        device: where the routes are.
    """

    def __init__(self, length: int, owner: int, device: torch.device) -> None:
        self.length, self.owner = length, owner
        self.route = torch.empty(0, dtype=torch.int32, device=device)
        """int32 [B]: the edit that each sequence follows, or -1; empty before the first decision."""
        self.left: torch.Tensor | None = None
        """int32 [B]: tokens still to be said with the memory's help, before it rests; None: it never does."""
        self._rows: torch.Tensor | None = None  # int32 [B, k], rows of memory; None: no sequence is known to read any
        self._first: torch.Tensor | None = None  # see `first_alike`; None: to be found again
        self._stamp = 0  # the store's, when the routes were last looked at
        self.prompts: list[Part] = []
        """The latest parts that were read."""
        self.unread = False
        """Whether a crop has left positions of which nothing says what is there: no prompt can go on behind them."""
        self.undecided = False
        """Whether a crop has taken some of what the route was decided on, and left the rest."""

    def select(self, rows: torch.Tensor) -> None:
        """Keeps `rows`, in that order, as the cache does."""
        self._each(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def repeat(self, times: int) -> None:
        """Repeats each row, as the cache does."""
        self._each(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def crop(self, removed: int) -> None:
        """Forgets the last `removed` positions.

        Of tokens that were said in the latest pass, as assisted decoding tries several, the kept ones count as if they
        had come one by one. Beyond these, all is as it was at the end of the last part of a prompt which is left whole.
        """
        if removed == 0:
            return
        self.length -= removed
        if self.left is not None:
            self.left = self.left + removed
        before = len(self.prompts)
        while self.prompts and self.prompts[-1].length > self.length:
            self.prompts.pop()
        last = self.prompts[-1] if self.prompts else None
        if not self._take_back(removed):
            return
        self.unread = self.length > (0 if last is None else last.length)
        if last is not None and last.decided is not None:  # a later part was read
            self.undecided = self.unread
            if not self.unread:
                self._follow_as_before(last, last.decided)
        elif len(self.prompts) < before:
            self.undecided = self.unread

    def _follow_as_before(self, part: Part, decided: _Decided) -> None:
        self.route, self._rows, self._stamp, left, said = decided
        self.left, self._first = None if left is None else left + said, None
        self.prompts[-1] = part._replace(decided=None)

    def end_prompt(self) -> None:
        """Notes that a part of a prompt ends here, for `crop`; behind a piece that was not read, none can be told."""
        if not self.unread:
            self.prompts.append(Part(self.length, self._summary()))
            del self.prompts[:-_PARTS_KEPT]

    def decide(self, route: torch.Tensor, left: torch.Tensor | None, store: MaskStore) -> None:
        """As `follow`, for what a part of a prompt leads to that is being read; and `left` tokens get help."""
        if self.prompts:
            last = self.prompts[-1]
            before = _Decided(self.route, self._rows, self._stamp, self.left, self.length - last.length)
            self.prompts[-1] = last._replace(decided=last.decided or before)  # a piece behind it may be left of another
        self.follow(route, store)
        self.left, self.undecided = left, False

    def follow(self, route: torch.Tensor, store: MaskStore) -> None:
        """From now on the sequences follow `route` int32 [B], edits of the store or -1."""
        self.route, self._stamp = route, store.stamp
        self._rows = self._first = None
        if len(store) and not follows_nothing(route):
            self._rows, self._first = store.reads(route)

    def look_again(self, store: MaskStore) -> None:
        """Where edits have changed since, follows them to where they are; those that were deleted, no further."""
        if store.stamp != self._stamp:
            self.follow(torch.where(store.still(self.route, self._stamp), self.route, -1), store)

    def routed(self, helped: torch.Tensor | None = None) -> Routed | None:
        """Where each sequence reads the memory, and to which tokens, bool [B, S] or None: all, it adds."""
        if self._rows is None:
            return None
        if self._rows.is_inference() and not torch.is_inference_mode_enabled():
            self._rows, self._first = self._rows.clone(), None
        if self._first is None:
            self._first = first_alike(self.route)
        return Routed(self._rows, self._first, helped)

    def again(self, read: Routed, store: MaskStore) -> Routed | None:
        """As `read`, in the same pass, where edits have changed since: the rows are where a change has copied them."""
        if store.stamp == self._stamp:
            return read
        self.look_again(store)
        found = self.routed(read.helped)
        return None if found is None else found._replace(route=torch.where(read.route < 0, -1, found.route))

    def help(self, tokens: int) -> Routed | None:
        """As `routed`, of a pass of tokens that are said, and counts them. Whose target has been said reads nothing."""
        if self.left is None:
            return self.routed()
        if self.left.is_inference() and not torch.is_inference_mode_enabled():
            self.left = self.left.clone()
        inside = None if tokens == 1 else torch.arange(tokens, device=self.left.device) < self.left[:, None]
        self.left -= 1
        rests = self.left >> 31  # the sign: -1 where the target has been said before this pass, otherwise 0
        if tokens > 1:
            self.left -= tokens - 1
        routed = self.routed(inside)
        return None if routed is None else Routed(routed.rows, routed.route | rests, inside)

    @abstractmethod
    def _summary(self) -> Any:
        """What has been read of the prompts; nothing changes it later."""

    @abstractmethod
    def _take_back(self, removed: int) -> bool:
        """Takes `removed` positions out of the summary; `length` and `prompts` are those of what is left.

        True where it went back to that of the last part of a prompt, since more was removed than was said.
        """

    @abstractmethod
    def _each(self, change: Change) -> None:
        """`change` of every tensor."""
        self.route, self._first = change(self.route), None
        if self._rows is not None:
            self._rows = change(self._rows)
        if self.left is not None:
            self.left = change(self.left)
        self.prompts = [
            Part(length, self._changed(summary, change), decided and decided.each(change))
            for length, summary, decided in self.prompts
        ]

    @staticmethod
    @abstractmethod
    def _changed(summary: Any, change: Change) -> Any:
        """`change` of every tensor of a summary."""


class _Said(NamedTuple):
    """The latest tokens after the prompt that came in one pass, of which a crop may take some back."""

    length: int  # positions before them
    mean: torch.Tensor  # float32 [B, D], before them
    seen: torch.Tensor  # float32 [B, 1], their count
    x: torch.Tensor  # [B, tokens, D]


class TokenMean(SequenceState):
    """Routes by the mean of the edited layer's inputs, as published.

    Args:
        mean (Tensor): float32 [B, D], mean over the tokens seen; NaN where none was.
        count (Tensor): float32 [B, 1], how many those are.
        length, owner (int): see `SequenceState`.
    """

    def __init__(self, mean: torch.Tensor, count: torch.Tensor, length: int, owner: int) -> None:
        super().__init__(length, owner, mean.device)
        self.mean, self.count = mean, count
        self._said: _Said | None = None

    def say(self, x: torch.Tensor) -> None:
        """Joins tokens after the prompt to the running mean, one by one: the layer's inputs x [B, tokens, D]."""
        if self.mean.is_inference() and not torch.is_inference_mode_enabled():
            self.mean, self.count = self.mean.clone(), self.count.clone()  # from a prefill in inference mode
        tokens = x.shape[1]
        # One token is never taken back alone: the passes that try tokens try several.
        self._said = _Said(self.length, self.mean.clone(), self.count.clone(), x) if tokens > 1 else None
        for token in range(tokens):
            self.count += 1
            self.mean.addcdiv_(x[:, token] - self.mean, self.count)
        self.length += tokens

    def read(self, mean: torch.Tensor, count: torch.Tensor) -> None:
        """Joins prompt tokens to the running mean, given their own mean float32 [B, D] and count float32 [B, 1]."""
        total = self.count + count
        joined = torch.where(self.count > 0, self.mean + (mean - self.mean) * (count / total), mean)
        self.mean, self.count = torch.where(count > 0, joined, self.mean), total

    def _summary(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean.clone(), self.count.clone()

    def _take_back(self, removed: int) -> bool:
        said, self._said = self._said, None
        if said is not None and said.length <= self.length:
            kept, self.length = self.length - said.length, said.length
            self.mean, self.count = said.mean, said.seen
            self.say(said.x[:, :kept])
            return False
        if self.prompts:
            self.mean, self.count = (one.clone() for one in self.prompts[-1].summary)
        else:
            self.mean, self.count = torch.zeros_like(self.mean), torch.zeros_like(self.count)
        return True

    def _each(self, change: Change) -> None:
        super()._each(change)
        self.mean, self.count = change(self.mean), change(self.count)
        if self._said is not None:
            length, *tensors = self._said
            self._said = _Said(length, *map(change, tensors))

    @staticmethod
    def _changed(summary: Any, change: Change) -> Any:
        mean, count = summary
        return change(mean), change(count)


class PromptsRead(SequenceState):
    """Routes by what the prompts' sentences are about; what the model says weighs nothing.

    Args:
        sums (PromptSums): of what was read so far.
        count (Tensor): float32 [B, 1], how many tokens that were no padding.
        length, owner (int): see `SequenceState`.
    """

    def __init__(self, sums: PromptSums, count: torch.Tensor, length: int, owner: int) -> None:
        super().__init__(length, owner, count.device)
        self.sums, self._counted = sums, count
        self._said: list[torch.Tensor] = []  # ids [B, tokens] of what was said since; looked at when a prompt goes on

    @property
    def count(self) -> torch.Tensor:
        """float32 [B, 1], tokens seen that are no padding."""
        return self._counted + sum(ids.shape[1] for ids in self._said)

    def say(self, ids: torch.Tensor) -> None:
        """Takes note of tokens after the prompt, int64 [B, tokens]."""
        self._said.append(ids)
        self.length += ids.shape[1]

    def said(self) -> torch.Tensor | None:
        """The ids [B, tokens] said since the prompt; they are counted, and not given again."""
        if not self._said:
            return None
        self._counted, ids = self.count, torch.cat([one.to(self._counted.device) for one in self._said], dim=1)
        self._said = []
        return ids

    def read(self, sums: PromptSums, count: torch.Tensor) -> None:
        """Goes on to sums that have taken in `count` float32 [B, 1] further tokens that are no padding."""
        self.sums, self._counted = sums, self._counted + count

    def _summary(self) -> tuple[PromptSums, torch.Tensor]:
        return self.sums, self._counted

    def _take_back(self, removed: int) -> bool:
        while removed and self._said:
            last = self._said.pop()
            if last.shape[1] > removed:
                self._said.append(last[:, : last.shape[1] - removed])
            removed -= min(removed, last.shape[1])
        if removed and self.prompts:
            self.sums, self._counted = self.prompts[-1].summary
        elif removed:
            empty = self.sums.each(torch.zeros_like)
            self.sums, self._counted = replace(empty, words=empty.words[:, :0]), torch.zeros_like(self._counted)
        return bool(removed)

    def _each(self, change: Change) -> None:
        super()._each(change)
        self.sums, self._counted = self.sums.each(change), change(self._counted)
        self._said = [change(ids) for ids in self._said]

    @staticmethod
    def _changed(summary: Any, change: Change) -> Any:
        sums, count = summary
        return sums.each(change), change(count)
