"""Recognises a forward pass that holds several sequences in one row, and tells these apart where that can be done.

Evidence that lies in names, classes and shapes is looked for in every pass. Values are read only where that stops no
device: on the CPU; and on a GPU where transformers reads them itself, in a prefill that is called by hand with position
ids or a mask of four dimensions and nothing in a cache, unless a graph is being captured.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch

from memoir_fast.errors import PackedBatchError, UnsupportedModelError
from memoir_fast.hf.attention_mask import allowed_keys, full_attention, real_tokens
from memoir_fast.hf.cache import counted, held, holds_tuples
from memoir_fast.hf.hidden import batch_shape


@torch.compiler.disable  # there is nothing in it to compile, and classes are looked at
def evidence(given: Mapping[str, Any], cache: Any) -> str | None:
    """What shows that a call with these arguments holds several sequences in a row; None: nothing does.

    Args:
        given: the arguments of the decoder by name.
        cache: the cache among them, or None.
    """
    for name, value in given.items():
        if value is None or isinstance(value, (bool, int)):
            continue
        if not isinstance(value, torch.Tensor) and _is_paged(type(value)):  # type: ignore[arg-type]
            return f"{name} is a {type(value).__name__}, whose blocks belong to many sequences"
        if name.replace("_", "").startswith("cuseqlen") and any(one.numel() > 2 for one in _tensors(value)):
            return f"{name} tells where several sequences begin and end"
    mask = full_attention(given.get("attention_mask"))
    if mask is not None and not isinstance(mask, torch.Tensor):
        return f"attention_mask is a {type(mask).__name__}, in which sequences and padding cannot be told apart"
    return _in_numbers(given.get("seq_idx"), cache) or _in_positions(given, mask, cache) or _in_mask(mask, cache)


def paged(given: Mapping[str, Any]) -> bool:
    """Whether a cache in blocks, of many sequences, is among a call's arguments."""
    kinds = [type(value) for value in given.values() if not isinstance(value, torch.Tensor)]
    return any(_is_paged(kind) for kind in kinds)  # type: ignore[arg-type]


WHAT_INSTEAD = (
    "give each sequence a row of its own, e.g. generate on a padded batch. Inside of memoir.disabled() the model runs "
    "so, without its edits; memoir.detach() takes the memory off"
)
"""What to do about sequences that share a row and cannot be told apart."""

Span = tuple[int, int, int]
"""Where a sequence lies: its row, its first token there, and the one behind its last."""


def spans(given: Mapping[str, Any], cache: Any, generating: bool = False, settings: Any = None) -> list[Span] | None:
    """Where the sequences of a call lie that holds several in a row; None where each row is a sequence.

    They are told by position ids that start again, cu_seq_lens and seq_idx. What of these the model's attention goes by
    depends on its kind: it must part them as they are parted here.

    Args:
        given: the arguments of the decoder by name.
        cache: the cache among them, or None.
        generating (bool): whether the call is one of `model.generate`, which goes on with rows. Default: False.
        settings (optional): the model's config, looked at where something shows. Without a `use_cache` of False, there
            or among the arguments, the model is taken to make a cache. Attention other than flash attention parts a row
            by position ids, through the mask that transformers makes where there is no cache. Default: none.

    Raises:
        UnsupportedModelError: keys and values came as tuples of tensors.
        PackedBatchError: the sequences of a row cannot be told apart.

    Example:
        >>> import torch
        >>> from memoir_fast.hf.packed import spans
        >>> positions = torch.tensor([[0, 1, 0, 1, 2]])
        >>> spans({"input_ids": positions, "position_ids": positions, "use_cache": False}, None)
        [(0, 0, 2), (0, 2, 5)]
    """
    if cache is None and holds_tuples(given.values()):
        raise UnsupportedModelError(
            "keys and values came as tuples of tensors, which cannot carry a route: give the model a cache object, "
            "e.g. transformers.DynamicCache"
        )
    shown = evidence(given, cache)
    if shown is None:
        return None
    starts: torch.Tensor | None = None
    flash = "flash" in str(getattr(settings, "_attn_implementation", ""))
    if (caching := given.get("use_cache")) is None:
        caching = getattr(settings, "use_cache", True)
    if full_attention(given.get("attention_mask")) is not None:
        unclear = "an attention_mask came with them, beside which transformers parts no row by positions"
    elif generating:
        unclear = "model.generate goes on with a row as one sequence"
    elif cache is not None and counted(cache) != 0:
        unclear = "the cache holds positions already"
    elif not flash and (cache is not None or caching is not False):
        unclear = "where the model fills a cache, transformers parts no row: call it with use_cache=False"
    elif not flash and not isinstance(given.get("position_ids"), torch.Tensor):
        unclear = "other attention than flash attention goes by position_ids, which were not given"
    else:
        starts, unclear = _starts(given)
    if starts is None:
        raise PackedBatchError(
            f"a forward pass holds several sequences in one row ({shown}), which cannot be told apart ({unclear}): "
            f"call the model with position_ids that start again with each, use_cache=False and no mask, or "
            f"{WHAT_INSTEAD}"
        )
    found = []
    for row, marks in enumerate(starts.tolist()):
        begins = [at for at, begin in enumerate(marks) if begin]
        found += [(row, begin, end) for begin, end in itertools.pairwise([*begins, len(marks)])]
    return found


def _starts(given: Mapping[str, Any]) -> tuple[torch.Tensor | None, str]:
    """At which tokens bool [B, S], on the CPU, a sequence starts; or None, and why that cannot be told."""
    found: dict[str, torch.Tensor] = {}
    for name, value in given.items():
        for place, one in enumerate(_tensors(value)):
            marks: torch.Tensor | str | None = None
            if name.replace("_", "").startswith("cuseqlen"):
                marks = _at_ends(one) if _readable(one, True) else "cannot be read now"
            elif name in ("seq_idx", "position_ids") and _of_prefill(_text_positions(one), 2):
                step = int(name == "position_ids")
                marks = _changes(_text_positions(one), step) if _readable(one, True) else "cannot be read now"
            if isinstance(marks, str):
                return None, f"{name} {marks}"
            if marks is not None:
                found[f"{name} {place}"] = marks
    if not found:
        return None, "nothing tells where each begins"
    shape = batch_shape((), dict(given))
    (first, starts), *others = found.items()
    for name, other in [(first, starts), *others]:
        if shape is not None and (other.shape[1] != shape[1] or len(other) not in (1, shape[0])):
            return None, f"{name.split()[0]} is of {list(other.shape)} tokens, there are {list(shape)}"
        if not torch.equal(other.expand_as(starts), starts):
            return None, f"{name.split()[0]} parts the row otherwise than {first.split()[0]}"
    return starts if shape is None else starts.expand(shape), ""


def _at_ends(ends: torch.Tensor) -> torch.Tensor | str:
    """Where sequences start whose ends are counted up, [N + 1]: bool [1, S]; or what is wrong."""
    counted_up = ends.flatten().tolist()
    if counted_up[:1] != [0] or sorted(counted_up) != counted_up:
        return f"must count up from 0, it is {counted_up}"
    marks = torch.zeros(1, counted_up[-1], dtype=torch.bool)
    marks[0, [end for end in counted_up if end < counted_up[-1]]] = True
    return marks


def _changes(numbers: torch.Tensor, step: int) -> torch.Tensor:
    """Where numbers [B, S] do not go on by `step` from one token to the next, and at the first, bool [B, S]."""
    marks = torch.ones(numbers.shape, dtype=torch.bool)
    marks[:, 1:] = (numbers.diff(dim=1) != step).cpu()
    return marks


def _text_positions(positions: torch.Tensor) -> torch.Tensor:
    """The text's, where three follow that tell where in an image or a video a token is."""
    return positions[0] if positions.dim() == 3 and len(positions) == 4 else positions


def _in_numbers(numbers: Any, cache: Any) -> str | None:
    if _of_prefill(numbers, 2) and _readable(numbers, cache is None) and bool((numbers != numbers[:, :1]).any()):
        return "seq_idx numbers several sequences within a row"
    return None


def _in_positions(given: Mapping[str, Any], mask: torch.Tensor | None, cache: Any) -> str | None:
    positions = given.get("position_ids")
    if isinstance(positions, torch.Tensor):
        positions = _text_positions(positions)
    if not _of_prefill(positions, 2) or not _readable(positions, mask is None and held(cache) == 0):
        return None
    rows, tokens = positions.shape
    real = real_tokens(mask, held(cache), rows if mask is None else len(mask), tokens, positions.device)
    step = positions[:, 1:] - positions[:, :-1]
    again = step <= 0 if mask is None else step < 0  # beside a mask, positions may stand still
    if bool((again & real[:, 1:] & real[:, :-1]).any()):
        return "position_ids start again within a row"
    return None


def _in_mask(mask: torch.Tensor | None, cache: Any) -> str | None:
    """Whether a mask parts a row: from some token on, none attends to a key before it, though real ones came before."""
    if not _of_prefill(mask, 4) or not _readable(mask, cache is None):
        return None
    allowed = allowed_keys(mask)
    batch, tokens, keys = allowed.shape
    start = held(cache)
    real = real_tokens(mask, start, batch, tokens, allowed.device)
    first = allowed.int().argmax(dim=2).masked_fill(~real, keys)  # the earliest key that a token looks at
    after = first.flip(1).cummin(dim=1).values.flip(1)  # the earliest of this token and all behind it
    own = torch.arange(tokens, device=allowed.device) + (start if keys >= start + tokens else keys - tokens)
    begins = real & (after >= own) & (real.cumsum(dim=1) > 1)
    return "attention_mask parts a row into blocks that do not see each other" if bool(begins.any()) else None


def _of_prefill(value: Any, dimensions: int) -> TypeGuard[torch.Tensor]:
    """Whether a tensor of so many dimensions speaks of more than one token; a decode step holds one per row."""
    tokens = -2 if dimensions == 4 else -1
    return isinstance(value, torch.Tensor) and value.dim() == dimensions and value.shape[tokens] > 1


def _readable(value: torch.Tensor, on_device: bool) -> bool:
    """Whether values may be looked at here; `on_device`: also where that waits for a device."""
    if torch.compiler.is_compiling() or isinstance(value, torch._subclasses.FakeTensor):
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(value) or value.device.type == "meta":
        return False
    if value.device.type == "cpu":
        return True
    return on_device and not (value.is_cuda and torch.cuda.is_current_stream_capturing())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    for one in value.values() if isinstance(value, Mapping) else [value]:
        if isinstance(one, torch.Tensor):
            yield one


@functools.cache
def _is_paged(kind: type) -> bool:
    """A cache of many sequences at once: it is updated as a cache is, in blocks, and has no one length."""
    return (
        callable(getattr(kind, "update", None))
        and not hasattr(kind, "get_seq_length")
        and any("block" in name for name in dir(kind))
    )
