"""`SequenceState`: what is remembered of running sequences, beside their keys and values."""

from collections.abc import Callable
from typing import NamedTuple

import torch

_PARTS_KEPT = 16  # parts of a prompt that `crop` can go back to


class _Said(NamedTuple):
    """The latest tokens after the prompt that came in one pass, of which a crop may take some back."""

    length: int  # positions before them
    mean: torch.Tensor  # float32 [B, D], before them
    seen: torch.Tensor  # float32 [B, 1], their count
    x: torch.Tensor  # [B, tokens, D]


class SequenceState:
    """What is remembered of the B sequences of one cache; it is moved with the cache's rows and positions.

    Args:
        mean (Tensor): float32 [B, D], mean of the edited layer's input over the tokens seen; NaN where none was.
        count (Tensor): float32 [B, 1], how many those are.
        length (int): positions in the cache, padding included.
        owner (int): the router whose store the routes point into.
    """

    def __init__(self, mean: torch.Tensor, count: torch.Tensor, length: int, owner: int) -> None:
        self.mean, self.count, self.length, self.owner = mean, count, length, owner
        self.route = torch.empty(0, dtype=torch.int32, device=mean.device)
        """int32 [B]: the edit that each sequence follows, or -1; empty before the first decision."""
        self.deletions = 0
        """How many edits had been deleted when the routes were last looked at."""
        self.prompts: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # length, mean, count at the end of each part
        self._said: _Said | None = None

    def select(self, rows: torch.Tensor) -> None:
        """Keeps `rows`, in that order, as the cache does."""
        self._each(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def repeat(self, times: int) -> None:
        """Repeats each row, as the cache does."""
        self._each(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def crop(self, removed: int) -> None:
        """Forgets the last `removed` positions.

        Of tokens that were said in the latest pass, as assisted decoding tries several, the kept ones count as if they
        had come one by one. Beyond these the mean goes back to that after the last part of a prompt which is left.
        """
        if removed == 0:
            return
        self.length -= removed
        while self.prompts and self.prompts[-1][0] > self.length:
            self.prompts.pop()
        said, self._said = self._said, None
        if said is not None and said.length <= self.length:
            kept, self.length = self.length - said.length, said.length
            self.mean, self.count = said.mean, said.seen
            self.say(said.x[:, :kept])
        elif self.prompts:
            self.mean, self.count = self.prompts[-1][1].clone(), self.prompts[-1][2].clone()
        else:
            self.mean, self.count = torch.zeros_like(self.mean), torch.zeros_like(self.count)

    def end_prompt(self) -> None:
        """Notes that a part of a prompt ends here, for `crop`."""
        self.prompts.append((self.length, self.mean.clone(), self.count.clone()))
        del self.prompts[:-_PARTS_KEPT]

    def say(self, x: torch.Tensor) -> None:
        """Joins tokens after the prompt to the running mean, one by one: the layer's inputs x [B, tokens, D]."""
        if self.mean.is_inference() and not torch.is_inference_mode_enabled():
            self.mean, self.count = self.mean.clone(), self.count.clone()  # from a prefill in inference mode
        tokens = x.shape[1]
        # One token is never taken back alone: the passes that try tokens try several.
        self._said = _Said(self.length, self.mean.clone(), self.count.clone(), x) if tokens > 1 else None
        for token in range(tokens):
            self.count += 1
            self.mean += (x[:, token] - self.mean) / self.count
        self.length += tokens

    def read(self, mean: torch.Tensor, count: torch.Tensor) -> None:
        """Joins prompt tokens to the running mean, given their own mean float32 [B, D] and count float32 [B, 1]."""
        total = self.count + count
        joined = torch.where(self.count > 0, self.mean + (mean - self.mean) * (count / total), mean)
        self.mean, self.count = torch.where(count > 0, joined, self.mean), total

    def drop_deleted(self, masks: torch.Tensor, deletions: int) -> None:
        """Sequences whose edit has been deleted follow none from now on.

        Args:
            masks (Tensor): the store's, int32 [C, W]; a deleted edit's is zero.
            deletions (int): how many edits the store has deleted in all.
        """
        if deletions > self.deletions:
            live = masks[self.route.clamp(min=0).long()].any(dim=1)
            self.route = torch.where(live, self.route, -1)
            self.deletions = deletions

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.mean, self.count, self.route = change(self.mean), change(self.count), change(self.route)
        self.prompts = [(length, change(mean), change(count)) for length, mean, count in self.prompts]
        if self._said is not None:
            length, *tensors = self._said
            self._said = _Said(length, *map(change, tensors))
