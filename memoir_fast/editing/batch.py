"""`Batch`: the rows of several edits, run through the lower layers once, and their losses for any residual."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from memoir_fast.core.edit import Edit
from memoir_fast.editing.alike import Alike
from memoir_fast.editing.context import EditContext
from memoir_fast.hf.buckets import Bucket
from memoir_fast.hf.partial_forward import layer_inputs
from memoir_fast.hf.presets import device_of
from memoir_fast.hf.tokens import Row, context_length, pad, padding_id, prompt_ids


class Request(NamedTuple):
    """One edit as token rows."""

    edit: Edit
    rows: list[Row]
    """What it is learned from, its plain prompt first."""
    quiet: list[Row] = []
    """Rows whose tokens from the last of `prompt` on shall be followed by what the unedited model says there."""
    boundary: bool = False
    """What comes after the target shall be what the unedited model says there, and none of the target's last word."""


Wanted = Sequence[Request]

_LENGTHS = 16  # on a GPU rows are padded to a multiple of this


def _width(rows: list[Row], longest: int | None) -> int:
    """Tokens to pad to, rounded up: few shapes occur then, and the first product of a new shape costs milliseconds."""
    needed = max(len(row.ids) for row in rows)
    rounded = -(-needed // _LENGTHS) * _LENGTHS
    return rounded if longest is None or rounded <= longest else needed


def inputs_of(context: EditContext, rows: list[Row]) -> list[list[torch.Tensor]]:
    """On each row, the inputs [tokens, D] of the edited layer and of each further one, in the unedited model."""
    input_ids, mask, _ = pad(rows, padding_id(context.tokenizer), device_of(context.model))
    layers = [context.layer, *context.layer.further]
    with context.layer.replacing_output(lambda x, y: y):
        found = layer_inputs(context.model, layers, input_ids=input_ids, attention_mask=mask)
    whole = [context.layer.whole(x) for x in found]
    return [[x[place, : len(row.ids)] for x in whole] for place, row in enumerate(rows)]


class Batch:
    """What learning E edits together reads at every step.

    Tokens are the batch's real ones in order, n in all; those of an edit are one span. Whatever is computed, is
    computed in float32, or float64 for a float64 model.

    Args:
        context (EditContext): the model and its memory.
        wanted: E edits, each with its token rows.
    """

    def __init__(self, context: EditContext, wanted: Wanted) -> None:
        own = [[*one.rows, *one.quiet] for one in wanted]
        rows = [row for some in own for row in some]
        device = device_of(context.model)
        width = _width(rows, context_length(context.model)) if device.type == "cuda" else None
        input_ids, mask, labels = pad(rows, padding_id(context.tokenizer), device, width)
        self.edits = [one.edit for one in wanted]
        self._upper = context.upper
        self._all = self._upper.lower(input_ids, mask)
        self.x = self._all.x
        device = self.x.device
        quiet = torch.tensor(
            [row >= len(one.rows) for one, some in zip(wanted, own, strict=True) for row in range(len(some))]
        )
        labels[quiet.to(labels.device)] = -100
        self._real, self._labels = mask.bool().to(device), labels[:, 1:].to(device)
        self._owner = torch.tensor([index for index, some in enumerate(own) for _ in some], device=device)
        lengths = [sum(len(row.ids) for row in some) for some in own]
        self.spans = [slice(sum(lengths[:index]), sum(lengths[: index + 1])) for index in range(len(lengths))]
        self.plain = [len(one.rows[0].ids) for one in wanted]  # tokens of each edit's plain row, its first
        self._chosen: list[int] = []
        self._several = bool(context.layer.further)
        self.outputs = [context.layer.outputs or slice(None), *(one.outputs for one in context.layer.further)]
        """Which outputs of W_m are each layer's."""
        self.masks, self.columns = self._hash(context, wanted)
        self.tokens = context.layer.whole(self.x[self._real]).to(
            torch.promote_types(self.x.dtype, torch.float32)
        )  # [n, D]
        self.a = [self.tokens[span][:, own.long()] for span, own in zip(self.spans, self.columns, strict=True)]
        self._alike = Alike(context, wanted, self._all, self.tokens.dtype)

    def _hash(self, context: EditContext, wanted: Wanted) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks int32 [E, W] and columns int32 [E, k], from each edit's plain row, which is its first."""
        first = [int((self._owner < index).sum()) for index in range(len(wanted))]
        lengths = torch.tensor([one.rows[0].prompt for one in wanted], device=self.x.device)
        x = self.x[first]
        prompt = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        masks, columns = context.hashed(x, prompt, [edit.prompt for edit in self.edits])
        for index, one in enumerate(wanted):
            if one.rows[0].ids[: one.rows[0].prompt] != prompt_ids(context.tokenizer, one.edit.prompt):
                masks[index], columns[index] = context.hash(one.edit.prompt)
        return masks, columns

    def choose(self, edits: Sequence[int]) -> None:
        """From now on, `losses` is about these edits, in ascending order.

        Places are looked up here, once for all steps of the same edits: each look waits for the device.
        """
        if list(edits) == self._chosen:
            return
        self._chosen = list(edits)
        device = self._owner.device
        numbers = torch.tensor(edits, device=device)
        chosen = torch.isin(self._owner, numbers)
        self._lower, real, labels = self._all.select(chosen), self._real[chosen], self._labels[chosen]
        self._shape, self._places = real.shape, real.flatten().nonzero()[:, 0]
        self._positions = F.pad(labels != -100, (0, 1)).nonzero(as_tuple=True)
        self._targets = labels[labels != -100]
        of_row = torch.searchsorted(numbers, self._owner[chosen])
        buckets = self._lower.buckets if self._several else ()  # each look waits for the device
        self._parts = [_Tokens.of(bucket, real, of_row, len(edits)) for bucket in buckets]
        learned = (labels != -100).any(dim=1)
        rows = torch.bincount(of_row[learned], minlength=len(edits))
        per_row = ((labels != -100).sum(dim=1) + 1) * rows[of_row]
        row = self._positions[0]
        self._weight, self._edit, self._count = 1.0 / per_row.to(self.tokens.dtype)[row], of_row[row], len(edits)
        self._alike.choose(edits, chosen)
        self._asked = tuple(
            torch.cat([one, more]) for one, more in zip(self._positions, self._alike.positions, strict=True)
        )

    def losses(
        self, residual: torch.Tensor, further: Sequence[Sequence[torch.Tensor]] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each chosen edit's loss, [chosen], as in `paper.row_losses`, averaged over its rows; and how unlike the
        unedited model's answers are where they shall be alike, [chosen]; see `Alike.losses`.

        Args:
            residual (Tensor): what is added to the layer's output at the chosen edits' tokens, [tokens, O].
            further: of each further layer, the rows of W_m [k, its outputs] that each chosen edit reads there.
        """
        added = [[partial(self._added, part, rows) for rows in further] for part in self._parts]
        padded = _spread(residual, self._places, self._shape)
        logits = self._upper.logits(self._lower, padded, self._asked, added).to(residual.dtype)
        said = len(self._targets)
        per_token = F.cross_entropy(logits[:said], self._targets, reduction="none") * self._weight
        own = per_token.new_zeros(self._count).index_add(0, self._edit, per_token)
        return own, self._alike.losses(logits[said:])

    def _added(self, part: "_Tokens", rows: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The output of a further layer, whose inputs x depend on what the layers before it add."""
        tokens = x.reshape(-1, x.shape[-1])[part.places].to(rows[0].dtype).split(part.sizes)
        chosen = zip(tokens, rows, self._chosen, strict=True)
        found = torch.cat([own.index_select(1, self.columns[edit].long()) @ weight for own, weight, edit in chosen])
        return (y + _spread(found, part.places, part.shape).view(*y.shape)).to(y.dtype)


class _Tokens(NamedTuple):
    """Where the real tokens of a bucket's rows are, edit by edit."""

    places: torch.Tensor  # int64 [tokens], in the rows laid end to end
    sizes: list[int]  # how many there are of each edit
    shape: torch.Size  # of the rows, (b, width)

    @classmethod
    def of(cls, bucket: Bucket, real: torch.Tensor, of_row: torch.Tensor, edits: int) -> "_Tokens":
        """Of rows whose real tokens are marked in bool [B, S], and which belong to the edits `of_row`, int64 [B]."""
        inside = bucket.of(real)
        lengths = torch.zeros(edits, dtype=torch.int64, device=real.device)
        lengths.index_add_(0, of_row[bucket.rows], inside.sum(dim=1))
        return cls(inside.flatten().nonzero()[:, 0], lengths.tolist(), inside.shape)


def _spread(values: torch.Tensor, places: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Values [tokens, O] at their places in rows laid end to end, zeros elsewhere: [*shape, O]."""
    found = values.new_zeros((shape.numel(), values.shape[1])).index_copy(0, places, values)
    return found.view(*shape, -1)
