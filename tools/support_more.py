"""Further columns of docs/support.md: ways to run a model that not every model has."""

from collections.abc import Callable
from typing import Any

import torch

from memoir_fast import MemoirConfig

NONE = "-"
"""What stands where the model without a memory cannot be run in that way."""


def beams(check: Any, memoir: Any) -> str:
    """Two beams for each row of a batch: whose edits they follow, and what they say, are each row's own."""
    from support_checks import require, said

    model, prompts = memoir.model, check.prompts[:3]
    given = check.inputs(prompts)
    with memoir.disabled():
        plain = _tried(lambda: said(model, given, num_beams=2))
    if plain is None:
        return NONE
    found = said(model, given, num_beams=2)
    routes = [one.edit_id for one in memoir.last_routes]
    require(routes[:: len(routes) // 3] == [0, 1, -1], f"the rows of beams follow {routes}")
    require(found[2] == plain[2], "beams say after an unmatched prompt what they said")
    require(found[:2] != plain[:2], "beams follow an edit")
    alone = said(model, check.inputs(prompts[:1]), num_beams=2)
    require(found[0] == alone[0], "beams of a batch say what each row's say alone")
    return "works"


def static_cache(check: Any, memoir: Any) -> str:
    """A static cache: the same tokens as with the model's own."""
    from support_checks import require, said

    model, given = memoir.model, check.inputs(check.prompts[:1])
    with memoir.disabled():
        plain = _tried(lambda: said(model, given, cache_implementation="static"))
    if plain is None:
        return NONE
    found = said(model, given, cache_implementation="static")
    require(found == said(model, given), "a static cache gives the tokens of any other")
    require(found != plain, "with a static cache, an edit is followed")
    return "works"


def two_layers(check: Any, memoir: Any, make: Callable[[], Any]) -> str:
    """A memory in the layer of the block before too: what is checked of one, on another copy of the model.

    Args:
        check (Check), memoir (Memoir): with the edits learned. make (callable): makes the plain model.
    """
    from support_checks import RECIPE, TAU

    last, model = memoir.config.layer, make()
    first = last.replace(".3.", ".2.")
    if first not in dict(model.named_modules()):
        return NONE
    two = MemoirConfig(layer=first, further=(last,), recipe=RECIPE, tau=TAU)
    type(check)(model, check.kind, check.images).run(two, make)
    return "works"


def compiled(check: Any, memoir: Any, make: Callable[[], Any]) -> str:
    """A prefill by `torch.compile(model, fullgraph=True)`: the logits and routes of any other.

    Args:
        check (Check), memoir (Memoir): with the edits learned. make (callable): makes the plain model.
    """
    from support_checks import require

    def run(model: Any) -> list[torch.Tensor]:
        torch._dynamo.reset()
        one = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            return [one(**check.inputs([check.prompts[at]]), use_cache=False).logits for at in (0, 2)]

    if _tried(lambda: run(make())) is None:
        return NONE
    found = run(memoir.model)
    require(memoir.last_routes[0].edit_id == -1, "a compiled pass over an unmatched prompt follows no edit")
    with torch.no_grad():
        for at, own in zip((0, 2), found, strict=True):
            expected = memoir.model(**check.inputs([check.prompts[at]]), use_cache=False).logits
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    return "works"


def _tried(run: Callable[[], Any]) -> Any:
    """What it gives, or None where it raises."""
    try:
        return run()
    except Exception:
        return None
