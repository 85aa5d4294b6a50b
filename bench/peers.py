"""What the ops are measured beside: the published code's way, good plain torch, torch.compile, numpy, FAISS, others.

Each function takes the inputs of the op of its name and returns what the op returns, unless it says otherwise.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import Absent, Peer, Settings
from flashinfer_topk import topk

from memoir_fast.reference import mask_match as reference_match
from memoir_fast.reference import mask_overlap as reference_overlap
from memoir_fast.reference.tophash import pack

_NUMPY_ROWS = 512  # per block: the temporaries stay in the cache
_BOOL_BYTES = 2 << 30  # no bool bank above this as float32: the published way takes 32 times the masks' bytes


def compiled(function: Callable[..., Any], settings: Settings, same: bool = True) -> Peer | Absent:
    """`function` through torch.compile."""
    if not settings.compile:
        return Absent("torch.compile is left out of a quick run")
    torch._dynamo.reset()
    return Peer(torch.compile(function, dynamic=False), same)


# prompt_feature


def feature_eager(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """Masked mean in float32, as the published code takes it."""
    marked = prompt_mask[..., None]
    return (x.float() * marked).sum(dim=1) / marked.sum(dim=1) - mu


def feature_matmul(x: torch.Tensor, prompt_mask: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """The mean as a product with a row of weights, which reads x once; rounds as matrix products do."""
    weights = prompt_mask.to(x.dtype)[:, None]
    return (weights @ x)[:, 0].float() / prompt_mask.sum(dim=1, keepdim=True) - mu


# tophash


def tophash_published(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> torch.Tensor:
    """Top-k, then a bool mask scattered and permuted; nothing is packed. Returns bool [B, D]."""
    chosen = feature.abs().topk(k, dim=1).indices
    mask = torch.zeros_like(feature, dtype=torch.bool).scatter_(1, chosen, True)
    permuted = torch.empty_like(mask)
    permuted[:, permutation.long()] = mask
    return permuted


def tophash_topk_pack(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k without order, scatter, pack, columns from the sorted choice."""
    chosen = permutation[feature.abs().topk(k, dim=1, sorted=False).indices]
    bits = torch.zeros(feature.shape, dtype=torch.bool, device=feature.device).scatter_(1, chosen.long(), True)
    return pack(bits), chosen.sort(dim=1).values


def tophash_numpy(feature: torch.Tensor, k: int, permutation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """argpartition and packbits."""
    magnitude, order = np.abs(feature.numpy()), permutation.numpy()
    rows, width = magnitude.shape
    chosen = order[np.argpartition(magnitude, width - k, axis=1)[:, width - k :]]
    bits = np.zeros((rows, -(-width // 128) * 128), dtype=bool)
    np.put_along_axis(bits, chosen, True, axis=1)
    packed = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    return torch.from_numpy(packed), torch.from_numpy(np.sort(chosen, axis=1))


def flashinfer_topk() -> Peer | Absent:
    """FlashInfer's top-k, built from its headers; selects only, without mask, packing or columns in order."""
    try:
        select = topk()
    except (LookupError, OSError, RuntimeError) as error:
        return Absent(str(error))
    return Peer(lambda feature, k, permutation: select(feature.abs(), k), same=False)


def torch_topk() -> Peer:
    """torch.topk alone: selects only."""
    return Peer(lambda feature, k, permutation: feature.abs().topk(k, dim=1, sorted=False), same=False)


# mask_overlap and mask_match


def overlap_numpy(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    """numpy's popcount, in blocks."""
    words, queries = store.numpy().view(np.uint64), query.numpy().view(np.uint64)
    found = np.empty((len(queries), len(words)), dtype=np.int32)
    for row, mask in enumerate(queries):
        for first in range(0, len(words), _NUMPY_ROWS):
            block = words[first : first + _NUMPY_ROWS]
            found[row, first : first + _NUMPY_ROWS] = np.bitwise_count(block & mask).sum(axis=1, dtype=np.int32)
    return torch.from_numpy(found)


def match_numpy(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> Any:
    """`overlap_numpy` and an arg-max, which takes the lowest row of a tie."""
    overlap = overlap_numpy(query, store[: int(count)])
    best = overlap.numpy().argmax(axis=1)
    found = torch.from_numpy(overlap.numpy()[np.arange(len(query)), best])
    least = min_overlap[torch.from_numpy(best)]
    return torch.where(found >= least, torch.from_numpy(best).int(), -1), found


def bool_bank(store: torch.Tensor) -> torch.Tensor | Absent:
    """The masks as the published code keeps them, bool [N, bits], or why not."""
    if store.numel() * 32 * 4 > _BOOL_BYTES:
        return Absent(f"bool masks cast to float32 would take {store.numel() * 128 / 1e9:.1f} GB")
    shift = torch.arange(32, dtype=torch.int32, device=store.device)
    return (store[..., None] >> shift & 1).flatten(-2).bool()


def match_published(bank: torch.Tensor | Absent) -> Peer | Absent:
    """The published retrieval: the bool bank cast to float32 at every call, a product, an arg-max."""
    if isinstance(bank, Absent):
        return bank

    def run(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> Any:
        bits = query[..., None] >> torch.arange(32, dtype=torch.int32, device=query.device) & 1
        overlap = bits.flatten(-2).float() @ bank.float().T
        best = overlap.max(dim=1)
        return torch.where(best.values >= min_overlap[best.indices], best.indices, -1).int(), best.values.int()

    return Peer(run)


def overlap_published(bank: torch.Tensor | Absent) -> Peer | Absent:
    """The same product, all overlaps kept."""
    if isinstance(bank, Absent):
        return bank

    def run(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
        bits = query[..., None] >> torch.arange(32, dtype=torch.int32, device=query.device) & 1
        return (bits.flatten(-2).float() @ bank.float().T).int()

    return Peer(run)


def match_half(bank: torch.Tensor | Absent, dtype: torch.dtype) -> Peer | Absent:
    """A well-written dense way: the bank kept in a two-byte float, one matrix product. Exact while k < 2^24."""
    if isinstance(bank, Absent):
        return bank
    kept = bank.to(dtype)

    def run(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> Any:
        bits = query[..., None] >> torch.arange(32, dtype=torch.int32, device=query.device) & 1
        return (bits.flatten(-2).to(dtype) @ kept.T).max(dim=1)

    return Peer(run, same=False)  # sums are rounded to the two-byte float


def match_torch(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> Any:
    """Popcount by shifts and adds on the packed masks, and an arg-max: the specification, as eager torch runs it."""
    return reference_match.mask_match(query, store, count, min_overlap)


def overlap_torch(query: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    """As `match_torch`, all overlaps kept."""
    return reference_overlap.mask_overlap(query, store)


def store_sum(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> torch.Tensor:
    """Reads every mask and does next to nothing: how quickly this store can be read."""
    return store.view(torch.int64).sum()


def popcount_match(query: torch.Tensor, store: torch.Tensor, count: torch.Tensor, min_overlap: torch.Tensor) -> Any:
    """What torch.compile fuses into one pass: popcount, row sums, maximum."""
    overlap = reference_overlap.popcount(store[None] & query[:, None]).sum(-1, dtype=torch.int32)
    best = overlap.max(dim=1)
    return torch.where(best.values >= min_overlap[best.indices], best.indices, -1).int(), best.values


def faiss_flat(store: torch.Tensor, threads: int) -> Peer | Absent:
    """FAISS's exhaustive binary index on the CPU. It ranks by Hamming distance, not by overlap: another function."""
    try:
        import faiss
    except ImportError:
        return Absent("faiss is not installed (pip install --no-deps faiss-cpu)")
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(store.shape[1] * 32)
    index.add(store.numpy().view(np.uint8))
    return Peer(lambda query, *_: index.search(query.numpy().view(np.uint8), 1), same=False)


def faiss_gpu(store: torch.Tensor) -> Peer | Absent:
    """FAISS's exhaustive binary index on a GPU, where the installed package has one."""
    try:
        import faiss
    except ImportError:
        return Absent("faiss is not installed")
    if not hasattr(faiss, "GpuIndexBinaryFlat"):
        return Absent("the installed faiss has no GPU part")
    index = faiss.GpuIndexBinaryFlat(faiss.StandardGpuResources(), store.shape[1] * 32)
    index.add(store.cpu().numpy().view(np.uint8))

    def run(query: torch.Tensor, *_: Any) -> Any:
        return index.search(query.cpu().numpy().view(np.uint8), 1)

    return Peer(run, same=False)


# masked_linear and memory_update


def gather_matmul(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
    """Gathers the edit's columns and multiplies, all sequences along the first's route."""
    active = columns[route[0]].long()
    return x[..., active] @ memory[active]


def dense(weight: torch.Tensor) -> Peer:
    """The product over all D columns: what an unmasked layer costs. Another function."""
    return Peer(lambda x, *_: F.linear(x, weight), same=False)


def dense_masked(weight: torch.Tensor, width: int) -> Peer:
    """The published way: the input times a bool mask, then the product over all D columns."""

    def run(x: torch.Tensor, memory: torch.Tensor, columns: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(width, dtype=torch.bool, device=x.device).index_fill_(0, columns[route[0]].long(), True)
        return F.linear(x * mask, weight)

    return Peer(run)


def update_indexed(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """memory[columns] += a^T c by fancy indexing."""
    memory[columns.long()] += a.T @ c
    return memory


def update_index_add(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The same by index_add_."""
    return memory.index_add_(0, columns.long(), a.T @ c)


def update_dense(memory: torch.Tensor, columns: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The published way: a gradient of the memory's full size, zero outside of the columns, is added."""
    gradient = torch.zeros_like(memory)
    gradient[columns.long()] = a.T @ c
    return memory.add_(gradient)


def backward_gathered(
    grad: torch.Tensor,
    x: torch.Tensor,
    memory: torch.Tensor,
    columns: torch.Tensor,
    route: torch.Tensor,
    need_x: bool,
    need_memory: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both gradients of one sequence by torch's own products over gathered rows."""
    rows = columns[0].long()
    to_x, to_memory = torch.zeros_like(x), torch.zeros_like(memory)
    to_x[..., rows] = grad @ memory[rows].mT
    to_memory[rows] = x[0][:, rows].mT @ grad[0]
    return to_x, to_memory
