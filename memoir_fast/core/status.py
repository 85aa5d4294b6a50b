"""`MemoirStatus`: the state of a memory in plain values."""

from collections import Counter
from dataclasses import dataclass

from memoir_fast import backends
from memoir_fast.core.edited_model import EditedModel


@dataclass(frozen=True)
class MemoirStatus:
    """The state of a memory in plain values."""

    model_type: str
    layer: str
    further: tuple[str, ...]
    """Further layers that the memory is added to."""
    edits: int
    deleted: int
    k: int
    width: int
    outputs: int
    tau: float
    dtype: str
    device: str
    pages: int
    page_edits: int
    memory_bytes: int
    store_bytes: int
    bytes_per_edit: int
    backends: dict[str, str]
    banks: dict[str, int]
    """Live edits of each bank; "" are those that are in none."""


def status_of(memoir: EditedModel) -> MemoirStatus:
    """What a memory holds, and what it costs."""
    layer = memoir.layer
    memory, store, codes = layer.memory, layer.store, layer.codes
    per_edit = store.nbytes // len(store.masks)
    if codes is not None:
        per_edit += codes.nbytes // len(codes.codes) * round(codes.live / max(1, len(memoir.edits)))
    return MemoirStatus(
        model_type=getattr(getattr(memoir.model, "config", None), "model_type", type(memoir.model).__name__),
        layer=memoir.names[0],
        further=memoir.names[1:],
        edits=len(memoir.edits),
        deleted=len(store) - len(memoir.edits),
        k=layer.k,
        width=layer.in_features,
        outputs=layer.out_features,
        tau=memoir.tau,
        dtype=str(memory.table.dtype).removeprefix("torch."),
        device=str(memory.table.device),
        pages=len(memory.numbers),
        page_edits=memoir.config.page_edits or 0,
        memory_bytes=len(memory.numbers) * memory.page(0).nbytes,
        store_bytes=store.nbytes + (codes.nbytes if codes is not None else 0),
        bytes_per_edit=per_edit,
        backends=backends.last_used(),
        banks=dict(sorted(Counter(edit.bank for edit in memoir.edits.values()).items())),
    )
