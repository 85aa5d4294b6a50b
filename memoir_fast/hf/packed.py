"""Recognises a forward pass that holds several sequences in one row, or whose rows cannot be told apart.

Evidence that lies in names, classes and shapes is looked for in every pass. Values are read only where that stops no
device: on the CPU; and on a GPU where transformers reads them itself, in a prefill that is called by hand with position
ids or a mask of four dimensions and nothing in a cache, unless a graph is being captured.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch

from memoir_fast.errors import PackedBatchError, UnsupportedModelError
from memoir_fast.hf.attention_mask import allowed_keys, full_attention, real_tokens
from memoir_fast.hf.cache import held, holds_tuples


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


WHAT_INSTEAD = (
    "give each sequence a row of its own, e.g. generate on a padded batch. Inside of memoir.disabled() the model runs "
    "so, without its edits; memoir.detach() takes the memory off"
)
"""What to do about sequences that share a row."""


def require_rows(given: dict[str, Any], cache: Any) -> None:
    """UnsupportedModelError or PackedBatchError where the rows of a call are not sequences that can be followed."""
    if cache is None and holds_tuples(given.values()):
        raise UnsupportedModelError(
            "keys and values came as tuples of tensors, which cannot carry a route: give the model a cache object, "
            "e.g. transformers.DynamicCache"
        )
    shown = evidence(given, cache)
    if shown is not None:
        raise PackedBatchError(
            f"a forward pass holds several sequences in one row ({shown}), and a memory routes a row as a whole: "
            f"{WHAT_INSTEAD}"
        )


def _in_numbers(numbers: Any, cache: Any) -> str | None:
    if _of_prefill(numbers, 2) and _readable(numbers, cache is None) and bool((numbers != numbers[:, :1]).any()):
        return "seq_idx numbers several sequences within a row"
    return None


def _in_positions(given: Mapping[str, Any], mask: torch.Tensor | None, cache: Any) -> str | None:
    positions = given.get("position_ids")
    if isinstance(positions, torch.Tensor) and positions.dim() == 3 and len(positions) == 4:
        positions = positions[0]  # the text's, before three that tell where in an image or a video a token is
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
