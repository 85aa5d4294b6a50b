"""`without_autocast`: what a memory computes by itself is not rounded by `torch.autocast`, in which a model may run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_KINDS = ("cpu", "cuda")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Within the block, or the function that it decorates, products are made in the dtypes of what is multiplied.

    Routing codes are float32 numbers of which the largest are chosen: rounded, they would be another prompt's. An edit
    is learned by passes of the model as its weights are. Costs a look at a flag where no autocast is in force.

    Example:
        >>> import torch
        >>> from memoir_fast.modules.autocast import without_autocast
        >>> one = torch.ones(2, 2)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     print((one @ one).dtype)
        ...     with without_autocast():
        ...         print((one @ one).dtype)
        torch.bfloat16
        torch.float32
    """
    with ExitStack() as off:
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                off.enter_context(torch.autocast(kind, enabled=False))
        yield
