"""Which models that lie on several processes can be given a memory: those that transformers' own plan splits."""

import re
from typing import Any

from torch import nn

from memoir_fast.distributed.row_parallel import Part, is_split
from memoir_fast.errors import MemoirError, UnsupportedModelError

# Wrappers by the name of their class, which need not be imported to look for it, and what to do instead.
_BY_PLAN = 'split it by a plan instead: from_pretrained(..., tp_plan="auto")'
_WRAPPERS = {
    "FullyShardedDataParallel": _BY_PLAN,
    "FSDPModule": _BY_PLAN,
    "DistributedDataParallel": "attach the memory to the model inside, its .module, on each process",
    "DataParallel": "attach the memory to the model inside, its .module, and run a process for each device",
}
_STYLE = "rowwise"


def require_served(model: nn.Module) -> None:
    """UnsupportedModelError where the model lies on several processes in a way in which it cannot have a memory."""
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                raise _refused(model, f"{kind.__name__} is around it or a part of it", _WRAPPERS[kind.__name__])
    settings = getattr(getattr(model, "config", None), "distributed_config", None)
    if (getattr(settings, "pp_size", None) or 1) > 1:
        raise _refused(model, "its blocks lie on different processes (pipeline parallelism)", "load it with pp_size=1")


def require_whole(model: nn.Module, what: str) -> None:
    """MemoirError where parts of the model lie on several processes, which `what`, e.g. "Memoir.open", cannot serve."""
    if _split(model):
        raise MemoirError(
            f"{what} serves models on one process, and this one's weights are split over several: do it on one, save "
            "the memory there, and load the folder on several by Memoir.from_pretrained"
        )


def part_of(model: Any, layer: nn.Module, name: str) -> Part | None:
    """What this process has of the edited layer, of that full name, in the plain model; None: all of the model.

    Raises:
        UnsupportedModelError: the model is tensor-parallel and this layer not split by its inputs, or as no plan of
            transformers' does it; the message says what to do.
    """
    weight = getattr(layer, "weight", None)
    plan = getattr(model, "_tp_plan", None) or {}
    style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name), _STYLE)
    if not _split(model):
        if getattr(layer, "_is_hooked", False):
            what = f"the layer {name!r} is split over processes by other means than DTensor"
            raise _refused(model, what, "use transformers 5.24 or later, whose tensor parallelism is known")
        return None
    if type(layer) is not nn.Linear or not is_split(weight):
        kind = f"a {type(layer).__module__}.{type(layer).__name__}{'' if is_split(weight) else ' that is whole'}"
        what = f"the model is split over processes, and the layer {name!r} is {kind}"
        raise _refused(model, what, f'it must be an nn.Linear whose plan is "{_STYLE}", as in tp_plan="auto"')
    if style != _STYLE:
        raise _refused(model, f"the plan of the layer {name!r} is {style!r}", f'it must be "{_STYLE}"')
    if odd := sorted({one for one in plan.values() if "sequence" in one}):
        raise _refused(model, f"its plan has {odd}", "a memory must see all tokens on every process: leave that out")
    return Part.of(weight)


def _split(model: nn.Module) -> bool:
    return any(is_split(one) for one in model.parameters())


def _refused(model: Any, what: str, instead: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{type(model).__name__} cannot be given a memory here: {what}; {instead}")
