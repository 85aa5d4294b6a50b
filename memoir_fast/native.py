"""Finds the compiled extension, built from csrc/, and the ops in it.

Its ops are `torch.ops.memoir_fast_native.<op>`, with the signatures of `memoir_fast.reference`. `MEMOIR_FAST_CPU`
(avx512, avx2, portable or auto) names the instruction set of the CPU kernels; the default is the widest that this
machine has.
"""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memoir_fast.ops import _checks
from memoir_fast.reference import masked_linear

_REASON = Path(__file__).parent / "_build_failure.txt"
# Tokens per sequence, by bytes per element, up to which the kernel beats the reference's gathered matrix product, which
# widens two-byte memory first: one thread, D=14336, O=k=4096. At D=1536, O=576, k=440 it wins at every length.
_LONGEST = {2: 512, 4: 96, 8: 64}
# What the CUDA kernels of masked_linear serve; beyond it, Triton's forms do better, or the kernels cannot.
_MOST_TOKENS = {torch.float32: 8, torch.float16: 128, torch.bfloat16: 128}  # of all sequences together
_MOST_SEQUENCES = {torch.float32: 4, torch.float16: 256, torch.bfloat16: 256}
_WIDEST = 1 << 17
_WIDEST_HASH = 16384  # of the CUDA tophash, which keeps a row in registers
_LONGEST_BFLOAT16 = 96  # where the processor multiplies bfloat16 and nothing is widened; 64 at the small layer


def _reason(otherwise: str) -> str:
    """What the build said that it left out, and why."""
    return _REASON.read_text().strip() if _REASON.is_file() else otherwise


@functools.cache
def extension() -> Any:
    """The loaded extension module. Raises ImportError, with the reason, where it was not built or cannot load."""
    try:
        module = importlib.import_module("memoir_fast._C")
    except ModuleNotFoundError:
        hint = "not built here; run pip install --no-build-isolation -e . where torch, ninja and a compiler are"
        raise ImportError(f"the extension memoir_fast._C is missing: {_reason(hint)}") from None
    _register_fakes()
    return module


def load(op: str, backend: str) -> Callable[..., Any]:
    """The extension's kernel for `op`; `backend` is `cpu` or `cuda`. Raises ImportError where there is none."""
    module = extension()
    if op not in module.ops(backend):
        if backend == "cuda" and not module.build_info()["cuda"]:
            raise ImportError(f"the extension was built without CUDA: {_reason('no reason was kept')}")
        raise ImportError(f"the extension has no {backend} kernel for {op}")
    run = getattr(torch.ops.memoir_fast_native, op).default
    _require_same_schema(op, run)
    return _unless_long(op, run) if backend == "cpu" and op.startswith("masked_linear") else run


def _require_same_schema(op: str, run: Any) -> None:
    """A file that was built before an op changed must not be called as if it were today's."""
    wanted, built = (
        [str(argument.type) for argument in kernel._schema.arguments]
        for kernel in (getattr(torch.ops.memoir_fast, op).default, run)
    )
    if built != wanted:
        raise ImportError(
            f"the extension is older than its sources: its {op} takes ({', '.join(built)}), not ({', '.join(wanted)}); "
            "build it again: pip install --no-build-isolation -e ."
        )


def limits(op: str, backend: str) -> Callable[..., str | None] | None:
    """What says why a kernel of the extension cannot serve a call, or None; itself None where it can serve all."""
    if backend != "cuda":
        return None
    return _why_not_on_a_gpu if op.startswith("masked_linear") else _LIMITS_ON_A_GPU.get(op)


def at_once(op: str, backend: str) -> Callable[..., bool] | None:
    """What says whether a call may go to the kernel before any check; None where every call may.

    A kernel checks its arguments itself and refuses what it cannot serve; this only spares it, and the caller an
    exception, what it often could not. What stands in for it on the CPU where tokens are many checks nothing.
    """
    if backend == "cuda" and op in _LIMITS_ON_A_GPU:
        why_not = _LIMITS_ON_A_GPU[op]
        return lambda *args: why_not(*args) is None
    if not op.startswith("masked_linear"):
        return None
    if backend == "cuda" and any(_too_old(device) for device in range(torch.cuda.device_count())):
        return lambda *_: False
    smallest = min(_LONGEST.values())
    most = _MOST_TOKENS if backend == "cuda" else dict.fromkeys(_checks.FLOATS, smallest)
    sequences = _MOST_SEQUENCES if backend == "cuda" else most

    def few_tokens(*args: torch.Tensor) -> bool:
        shape: tuple[int, ...] = getattr(args[-4], "shape", ())
        if len(shape) != 3:
            return False
        dtype = args[-4].dtype
        return shape[0] * shape[1] <= most.get(dtype, 0) and shape[0] <= sequences.get(dtype, 0)

    return few_tokens


def _why_not_on_a_gpu(*args: torch.Tensor) -> str | None:
    """Arguments as of masked_linear or masked_linear_add_, whose checks may still be to come."""
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


def _why_not_hash_on_a_gpu(feature: torch.Tensor, *_: Any) -> str | None:
    if not feature.is_cuda:
        return f"needs cuda tensors, got {feature.device.type}"
    if feature.dim() == 2 and feature.shape[1] > _WIDEST_HASH:
        return f"serves at most {_WIDEST_HASH} inputs, got {feature.shape[1]}"
    return None


def _why_not_feature_on_a_gpu(x: torch.Tensor, *_: Any) -> str | None:
    if not x.is_cuda:
        return f"needs cuda tensors, got {x.device.type}"
    if x.dtype not in _MOST_TOKENS:
        return f"serves float16, bfloat16 and float32, got {str(x.dtype).removeprefix('torch.')}"
    if x.dim() != 3:
        return "needs x [B, S, D]"
    batch, token, step = x.stride()
    size = x.element_size()
    if step != 1 or batch * size % 16 or token * size % 16 or x.data_ptr() % 16:
        return "needs tokens of dense inputs that begin on 16-byte boundaries"
    return None


_LIMITS_ON_A_GPU: dict[str, Callable[..., str | None]] = {
    "tophash": _why_not_hash_on_a_gpu,
    "prompt_feature": _why_not_feature_on_a_gpu,
}


@functools.cache
def _too_old(device: int) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (9, 0) else f"needs compute capability 9.0, got {capability[0]}.{capability[1]}"


def _unless_long(op: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` for few tokens per sequence; for more, what gathers once and multiplies in one product."""
    reference = getattr(masked_linear, op)

    def choose(*args: torch.Tensor) -> Any:
        x = args[-4]
        if x.dtype == torch.bfloat16 and _multiplies_bfloat16():
            return (run if x.shape[1] <= _LONGEST_BFLOAT16 else _gathered)(*args)
        return (run if x.shape[1] <= _LONGEST[x.element_size()] else reference)(*args)

    return choose


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Whether torch's products of bfloat16 accumulate in float32 and round once, the addend included, and are quick."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def _gathered(*args: torch.Tensor) -> torch.Tensor | None:
    """masked_linear(x, memory, columns, route), or with a base before these masked_linear_add_, by torch's products."""
    *bases, x, memory, columns, route = args
    y = bases[0] if bases else x.new_zeros((*x.shape[:2], memory.shape[1]))
    for sequence, active in masked_linear.routed(columns, route):
        y[sequence] = torch.addmm(y[sequence], x[sequence][:, active], memory[active])
    return None if bases else y


def _register_fakes() -> None:
    """Output shapes of the raw ops, so that they can be traced."""

    def fake(op: str) -> Callable[..., None]:
        def register(shapes: Callable[..., Any]) -> None:
            def checked(*args: Any) -> Any:
                tensors = {f"argument {i}": arg for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)}
                _checks.same_device(**tensors)
                return shapes(*args)

            torch.library.register_fake(f"memoir_fast_native::{op}", checked)

        return register

    @fake("mask_overlap")
    def _(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
        return query.new_empty((query.shape[0], store.shape[0]))

    @fake("mask_match")
    def _(query: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return query.new_empty(query.shape[0]), query.new_empty(query.shape[0])

    @fake("tophash")
    def _(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, width = feature.shape
        mask = feature.new_empty((rows, _checks.words(width)), dtype=torch.int32)
        return mask, feature.new_empty((rows, k), dtype=torch.int32)

    @fake("mask_columns")
    def _(mask: torch.Tensor, k: int) -> torch.Tensor:
        return mask.new_empty((mask.shape[0], k))

    @fake("prompt_feature")
    def _(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        return x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32)

    @fake("masked_linear")
    def _(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
        return x.new_empty((x.shape[0], x.shape[1], memory.shape[1]))

    @fake("masked_linear_add_")
    def _(*_: torch.Tensor) -> None:
        return None
