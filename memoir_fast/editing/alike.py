"""Where an edited model shall say what the unedited one says: behind neighbours' prompts, and after the target."""

from collections.abc import Sequence
from typing import Any

import torch

from memoir_fast.hf.partial_forward import LowerStates
from memoir_fast.hf.tokens import unspaced


class Alike:
    """Positions of a batch whose next token shall be distributed as in the unedited model, P in all.

    They are those of the quiet rows, from the last token of the prompt on; and the last token of a target. Where that
    ends in a letter or digit, the unedited model's distribution is cut to tokens that begin a new word.

    Args:
        context (EditContext): the model and its memory.
        wanted (sequence of Request): E edits.
        lower (LowerStates): what the lower layers give for their rows and quiet rows, in order.
        dtype: of the losses.
    """

    def __init__(self, context: Any, wanted: Sequence[Any], lower: LowerStates, dtype: torch.dtype) -> None:
        places: list[tuple[int, int, int, bool]] = []  # row, token, edit, cut to tokens that begin a word
        row = 0
        for number, one in enumerate(wanted):
            for own in one.rows:
                if one.boundary:
                    places.append((row, len(own.ids) - 1, number, ends_word(one.edit.target)))
                row += 1
            for own in one.quiet:
                places += [(row, place, number, False) for place in range(own.prompt - 1, len(own.ids))]
                row += 1
        device = lower.x.device
        table = torch.tensor(places, dtype=torch.int64, device=device).view(-1, 4)
        self._rows, self._places, self._edits, cut = table.unbind(dim=1)
        self._expected = torch.empty(0, device=device)
        if places:
            nothing = torch.zeros((), dtype=lower.x.dtype, device=device)
            nothing = nothing.expand(*lower.x.shape[:2], context.layer.out_features)
            with torch.no_grad():
                logits = context.upper.logits(lower, nothing, (self._rows, self._places)).to(dtype)
                inside = ~context.begins_word(logits.shape[1], logits.device)
                self._expected = logits.masked_fill(cut.bool()[:, None] & inside, float("-inf")).softmax(dim=1)
        self.positions = self._rows, self._places
        self._of, self._wanted, self._chosen = self._edits, self._expected, 0
        self._certain = self._expected.new_zeros(0)  # of each number of it, p log p
        self._alike = self._edits.new_zeros(0)  # of each position, how many its edit has

    def choose(self, edits: Sequence[int], rows: torch.Tensor) -> None:
        """From now on, `losses` is about these edits, in ascending order, whose rows are marked in bool [B]."""
        self._chosen = len(edits)
        if not len(self._rows):
            return
        numbers = torch.tensor(edits, device=self._edits.device)
        chosen = torch.isin(self._edits, numbers)
        place = rows.long().cumsum(dim=0) - 1
        self.positions = place[self._rows[chosen]], self._places[chosen]
        self._of, self._wanted = torch.searchsorted(numbers, self._edits[chosen]), self._expected[chosen]
        self._certain = torch.xlogy(self._wanted, self._wanted)
        self._alike = torch.bincount(self._of, minlength=len(edits))[self._of]  # here since it waits for a device

    def losses(self, logits: torch.Tensor) -> torch.Tensor:
        """Per chosen edit, the Kullback-Leibler divergence from the unedited model, a mean over its positions.

        Args:
            logits (Tensor): [P, V] at the chosen edits' `positions`.

        Returns:
            [chosen]; 0 for an edit without such positions.
        """
        if not len(logits):
            return logits.new_zeros(self._chosen)
        # as F.kl_div, which takes the logarithms of what does not change anew in every step
        apart = (self._certain - self._wanted * logits.log_softmax(dim=1)).sum(dim=1)
        return apart.new_zeros(self._chosen).index_add(0, self._of, apart / self._alike)


def ends_word(target: str) -> bool:
    """Whether a target ends in a letter or digit of a script with spaces: then more of them would change it."""
    last = target.rstrip()[-1:]
    return last.isalnum() and not unspaced(last)
