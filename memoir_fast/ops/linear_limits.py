"""Which calls of the residual product the extension's kernels serve, and what serves the others on the CPU."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import checks
from memoir_fast.backends import Native
from memoir_fast.reference.masked_linear import routed

# Tokens per sequence, by bytes per element, up to which the kernel beats the reference's gathered matrix product, which
# widens two-byte memory first: one thread, D=14336, O=k=4096. At D=1536, O=576, k=440 it wins at every length.
_LONGEST = {2: 512, 4: 96, 8: 64}
# What the CUDA kernels serve.
_MOST_TOKENS = {torch.float32: 8, torch.float16: 128, torch.bfloat16: 128}  # of all sequences together
_MOST_SEQUENCES = {torch.float32: 4, torch.float16: 256, torch.bfloat16: 256}
_WIDEST = 1 << 17
_LONGEST_BFLOAT16 = 96  # where the processor multiplies bfloat16 and nothing is widened; 64 at the small layer


def on_cpu(reference: Callable[..., Any]) -> Native:
    """What serves calls on the CPU; `reference` those of many tokens, by one gathered matrix product."""

    most = dict.fromkeys(checks.FLOATS, min(_LONGEST.values()))

    def at_once(*args: Any) -> bool:
        return _few_tokens(args, most, most)

    def unless_long(run: Callable[..., Any]) -> Callable[..., Any]:
        def choose(*args: torch.Tensor) -> Any:
            x = args[-4]
            if x.dtype == torch.bfloat16 and _multiplies_bfloat16():
                return (run if x.shape[1] <= _LONGEST_BFLOAT16 else _gathered)(*args)
            return (run if x.shape[1] <= _LONGEST[x.element_size()] else reference)(*args)

        return choose

    return Native(at_once=at_once, wrap=unless_long)


def on_gpu() -> Native:
    """What serves calls on a GPU; Triton's forms do better, or these kernels cannot, beyond."""

    def at_once(*args: Any) -> bool:
        return not _some_too_old() and _few_tokens(args, _MOST_TOKENS, _MOST_SEQUENCES)

    return Native(unsupported=_why_not_on_a_gpu, at_once=at_once)


def _few_tokens(args: tuple[Any, ...], most: dict[torch.dtype, int], sequences: dict[torch.dtype, int]) -> bool:
    x = args[-4]
    shape: tuple[int, ...] = getattr(x, "shape", ())
    if len(shape) != 3:
        return False
    return shape[0] * shape[1] <= most.get(x.dtype, 0) and shape[0] <= sequences.get(x.dtype, 0)


@functools.cache
def _some_too_old() -> bool:
    return any(_too_old(device) for device in range(torch.cuda.device_count()))


def _why_not_on_a_gpu(*args: torch.Tensor) -> str | None:
    """Arguments whose checks may still be to come; of the in-place form with a base before the others."""
    x, memory = args[-4], args[-3]
    if not x.is_cuda:
        return f"needs cuda tensors, got {x.device.type}"
    most = _MOST_TOKENS.get(x.dtype)
    if most is None:
        return f"serves float16, bfloat16 and float32, got {str(x.dtype).removeprefix('torch.')}"
    if x.dim() != 3 or memory.dim() != 2:
        return "needs x [B, S, D] and memory [D, O]"
    batch, tokens, width = x.shape
    if batch * tokens > most or batch > _MOST_SEQUENCES[x.dtype]:
        return f"serves at most {most} tokens of at most {_MOST_SEQUENCES[x.dtype]} sequences, got {batch} x {tokens}"
    if width > _WIDEST:
        return f"serves at most {_WIDEST} inputs, got {width}"
    row, step = memory.stride()
    size = memory.element_size()
    if step != 1 or row * size % 16 or memory.shape[1] * size % 16 or memory.data_ptr() % 16:
        return "needs rows of memory of whole pieces of 16 bytes, dense and on 16-byte boundaries"
    return _too_old(x.device.index)


@functools.cache
def _too_old(device: int) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (9, 0) else f"needs compute capability 9.0, got {capability[0]}.{capability[1]}"


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Whether torch's products of bfloat16 accumulate in float32 and round once, the addend included, and are quick."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def _gathered(*args: torch.Tensor) -> torch.Tensor | None:
    """The product, or with a base before the other arguments its in-place form, by torch's products."""
    *bases, x, memory, columns, route = args
    y = bases[0] if bases else x.new_zeros((*x.shape[:2], memory.shape[1]))
    for sequence, active in routed(columns, route):
        y[sequence] = torch.addmm(y[sequence], x[sequence][:, active % x.shape[2]], memory[active])
    return None if bases else y
