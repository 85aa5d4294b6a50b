"""The sizes that are measured: edited layers of known models, and random masks of any number."""

from dataclasses import dataclass

import torch

from memoir_fast.mask_format import pack, unpack
from memoir_fast.modules import huge_pages

TAU = 0.5


@dataclass(frozen=True)
class Layer:
    """An edited layer: D inputs, O outputs, k active columns."""

    model: str
    width: int
    outputs: int
    k: int

    @property
    def words(self) -> int:
        """int32 words of a packed mask."""
        return 4 * -(-self.width // 128)

    @property
    def min_overlap(self) -> int:
        """Bits that a match needs."""
        return int(TAU * self.k)

    @property
    def sizes(self) -> dict[str, int | str]:
        """What a row says of it."""
        return {"model": self.model, "D": self.width, "O": self.outputs, "k": self.k}


LLAMA = Layer("Llama-3-8B", 14336, 4096, 4096)
SMOLLM = Layer("SmolLM2", 1536, 576, 440)
LAYERS = (
    LLAMA,
    Layer("Mistral-7B", 14336, 4096, 4096),
    Layer("Llama-2-7B", 11008, 4096, 4096),
    Layer("GPT-J", 16384, 4096, 4096),
    Layer("Qwen2.5-7B", 18944, 3584, 4096),
    SMOLLM,
)
TOKENS_OF_PROMPT, TOKENS_OF_PREFILL, TOKENS_OF_CHUNK, TOKENS_OF_EDIT, EDITS = 512, 2048, 64, 220, 7000
"""Of the calls that the kernels are compiled and predicted for."""
DISTINCT = tuple({(layer.width, layer.outputs, layer.k): layer for layer in reversed(LAYERS)}.values())[::-1]


def masks(count: int, layer: Layer, device: str = "cpu") -> torch.Tensor:
    """Random masks int32 [count, W]: each of the D bits set with probability 1/4, close to k/D; bits past D are 0.

    They lie as those of a `MaskStore` do, in huge pages where they are many.
    """
    found = huge_pages.zeros((count, layer.words), torch.int32, device)
    for start in range(0, count, 1 << 12):  # 4 Ki rows at a time: small temporaries are reused
        part = found[start : start + (1 << 12)]
        part.copy_(_words(part.shape, device) & _words(part.shape, device))
    if layer.width % 128:
        bit = torch.arange(layer.words * 32, device=device).view(layer.words, 32) < layer.width
        keep = (bit * (1 << torch.arange(32, device=device))).sum(1)
        found &= torch.where(keep >= 1 << 31, keep - (1 << 32), keep).int()
    return found


def _words(shape: torch.Size, device: str) -> torch.Tensor:
    """Random int32 words, two of each number that is drawn."""
    drawn = torch.empty((shape[0], shape[1] // 2), dtype=torch.int64, device=device)
    return drawn.random_(-(1 << 63), None).view(torch.int32)


def columns(count: int, layer: Layer, device: str = "cpu") -> torch.Tensor:
    """k random columns each, ascending, int32 [count, k]."""
    scores = torch.rand((count, layer.width), device=device)
    return scores.topk(layer.k, dim=1).indices.sort(dim=1).values.int()


def bits_of(mask: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The D bits of packed masks, bool [count, D]."""
    return unpack(mask, layer.width)


def mask_of(own: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The packed masks of columns int32 [count, k]."""
    return pack(torch.zeros((len(own), layer.width), dtype=torch.bool).scatter_(1, own.long(), True))


def count_of(rows: int, device: str) -> torch.Tensor:
    """The number of stored masks as the ops take it, int32 []."""
    return torch.tensor(rows, dtype=torch.int32, device=device)


def thresholds_of(rows: int, bits: int, device: str) -> torch.Tensor:
    """One threshold for every stored mask, as the ops take it, int32 [rows]."""
    return torch.full((rows,), bits, dtype=torch.int32, device=device)


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def meta(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """A tensor without memory: what a launcher is given that only tells what it would launch."""
    return torch.empty(shape, dtype=dtype, device="meta")


def queries_name(queries: int, stored: int, layer: Layer) -> str:
    """`1 query, N=7,000, D=14336`."""
    return f"{queries} quer{'ies' if queries > 1 else 'y'}, N={stored:,}, D={layer.width}"


class Token:
    """What the ops take for one decode token at a layer that has `stored` edits."""

    def __init__(self, layer: Layer, dtype: torch.dtype, stored: int, device: str) -> None:
        self.layer = layer
        self.x = torch.randn((1, 1, layer.width), device=device).to(dtype)
        self.marked = torch.ones((1, 1), dtype=torch.bool, device=device)
        self.mu = torch.zeros(layer.width, device=device)
        self.permutation = torch.randperm(layer.width).int().to(device)
        self.feature = torch.randn((1, layer.width), device=device)
        self.query, self.store = masks(1, layer, device), masks(stored, layer, device)
        self.count = count_of(stored, device)
        self.min_overlap = thresholds_of(stored, layer.min_overlap, device)
        self.memory = torch.randn((layer.width, layer.outputs), device=device).to(dtype)
        self.columns = columns(1, layer, device)
        self.route = torch.zeros(1, dtype=torch.int32, device=device)
        self.base = torch.zeros((1, 1, layer.outputs), device=device, dtype=dtype)
