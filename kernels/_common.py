"""What the launchers share: when a Triton kernel can serve, device selection, tile sizes, device helpers."""

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)  # fixed when triton.jit sees the first kernel: at import
_UPCAST = tl.constexpr(INTERPRETED)
_SERVED = (torch.float16, torch.bfloat16, torch.float32)
_OLDEST = (8, 0)  # bfloat16 arithmetic and cp.async


def unsupported(*args: Any) -> str | None:
    """Why the Triton kernels cannot serve a call with these arguments here, or None where they can."""
    first = args[0]
    if first.device.type == "cpu":
        if not INTERPRETED:
            return "needs CUDA tensors, got cpu (TRITON_INTERPRET=1, set before the start, runs the kernels there)"
    elif first.device.type != "cuda":
        return f"needs CUDA tensors, got {first.device.type}"
    elif INTERPRETED:
        return "TRITON_INTERPRET=1 is set: the kernels serve CPU tensors in this process"
    elif torch.cuda.get_device_capability(first.device) < _OLDEST:
        return (
            f"needs compute capability {_OLDEST[0]}.{_OLDEST[1]}, {torch.cuda.get_device_name(first.device)} has less"
        )
    for value in args:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype not in _SERVED:
            return f"serves float16, bfloat16 and float32, got {str(value.dtype).removeprefix('torch.')}"
    return None


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's device the current one for a launch; free of cost where it already is."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def power_of_two(size: int, smallest: int = 1, largest: int = 1 << 30) -> int:
    """The smallest power of two that holds `size`, kept within two bounds that are powers of two themselves."""
    return max(smallest, min(largest, 1 << max(size - 1, 0).bit_length()))


@triton.jit
def dot(a, b, acc):
    """acc + a b in float32, exact products. The interpreter takes bfloat16's bits for integers, so it gets float32."""
    if _UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def popcount(words):
    """Set bits of each word; LLVM knows the idiom and emits one POPC."""
    bits = words.to(tl.uint32, bitcast=True)
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) >> 24).to(tl.int32)
