"""`MemoirConfig`: every setting of a memory, checked, to and from JSON."""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from memoir_fast.recipe import RECIPES, Recipe

_LIMITS = (("max_edits", 1), ("page_edits", 1), ("max_pages", 1))


@dataclass(frozen=True)
class MemoirConfig:
    """Settings of a memory. What is None is filled in for the model at hand by `presets.complete`.

    Example:
        >>> from memoir_fast import MemoirConfig
        >>> config = MemoirConfig(tau=0.45)
        >>> MemoirConfig.from_dict(config.to_dict()) == config
        True
        >>> MemoirConfig(tau=1.5)
        Traceback (most recent call last):
            ...
        ValueError: tau must lie in (0, 1] or be 'auto', got 1.5
    """

    layer: str | None = None
    """Full module name of the linear layer that gets the memory, e.g. `model.layers.27.mlp.down_proj`."""

    further: int | Sequence[str] = ()
    """Further linear layers that the memory is added to, behind `layer` and with as many inputs: their full names in
    the order of the model, each in a block of its own, or how many: those of the same name in the next blocks. One
    decision is made for all, at `layer`, and an edit is learned in all at once."""

    k: int | None = None
    """Active columns per edit, 1 <= k <= D."""

    tau: float | str | None = None
    """Threshold on the overlap ratio: a number in (0, 1], or "auto" to set it by calibration."""

    seed: int = 0
    """Seed of the permutation."""

    routing: str = "early"
    """Whom a prompt belongs to: "early" (routing codes, made of what its words mean in an early block) or "paper" (the
    mask of the columns that it would write, as published)."""

    routing_block: int | None = None
    """The block whose input routing codes are made of; None: chosen when the memory is put on."""

    recipe: str | Recipe = "fast"
    """How an edit is learned: a name in `memoir_fast.editing.RECIPES`, or a Recipe."""

    prefix_tokens: int = 10
    """New tokens in each prefix, which the model writes itself."""

    background: int = 100
    """Irrelevant prompts whose mean feature is mu."""

    max_edits: int | None = None
    """Refuse further edits past this number; None: grow."""

    page_edits: int | None = None
    """Edits that a page of the residual memory takes before another is opened; None: by the layer's width and k."""

    max_pages: int | None = None
    """The most pages; further edits then crowd them. On a GPU, memory for all is taken at once. None: grow."""

    check: bool = field(default=True, compare=False)
    """Prove on the very model, when the memory is put on, that sequences can be followed in it. It is not saved."""

    learned: Recipe = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tau is not None and self.tau != "auto":
            if isinstance(self.tau, (str, bool)) or not isinstance(self.tau, Real) or not 0 < self.tau <= 1:
                raise ValueError(f"tau must lie in (0, 1] or be 'auto', got {self.tau!r}")
            object.__setattr__(self, "tau", float(self.tau))
        if self.routing not in ("early", "paper"):
            raise ValueError(f"routing must be 'early' or 'paper', got {self.routing!r}")
        for name, least in (("routing_block", 0), ("k", 1), ("prefix_tokens", 1), ("background", 1), *_LIMITS):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        object.__setattr__(self, "further", _further(self.further))
        if self.recipe not in RECIPES if isinstance(self.recipe, str) else not isinstance(self.recipe, Recipe):
            raise ValueError(f"recipe must be one of {', '.join(sorted(RECIPES))} or a Recipe, got {self.recipe!r}")
        object.__setattr__(self, "learned", RECIPES[self.recipe] if isinstance(self.recipe, str) else self.recipe)
        if self.further:
            self.learned.require_several_layers()

    def replace(self, **changes: Any) -> "MemoirConfig":
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what belongs to a memory, so not `check`."""
        values = dataclasses.asdict(self)
        del values["learned"], values["check"]
        if not self.further:
            del values["further"]  # as it was before there were any
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MemoirConfig":
        """The inverse of `to_dict`. Unknown keys are left out, with a warning that names them."""
        known = {field.name for field in dataclasses.fields(cls) if field.init}
        unknown = sorted(set(values) - known)
        if unknown:
            warnings.warn(
                f"settings that this version of memoir_fast does not know are left out: {', '.join(unknown)}; "
                "a newer version may have written them",
                stacklevel=2,
            )
        values = {name: value for name, value in values.items() if name in known}
        if isinstance(values.get("recipe"), dict):
            values["recipe"] = Recipe(**values["recipe"])
        return cls(**values)


def _further(given: Any) -> int | tuple[str, ...]:
    """What `MemoirConfig.further` was given, checked; none in one way alone."""
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given or ()
    names = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if isinstance(given, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"further must be names of layers, or how many there are, got {given!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"further must name each layer once, got {given!r}")
    return names
