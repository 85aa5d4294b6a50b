"""Proves on a model that its sequences can be followed, by a prefill and a decode step of two short rows."""

import copy
import importlib.metadata
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.cache import counted, find_cache, holds_tuples, is_cache, remembered
from memoir_fast.hf.hidden import hidden_states
from memoir_fast.hf.own_pass import uncompiled
from memoir_fast.hf.presets import device_of

TOKENS = 5
"""Tokens of the rows; where the model takes an attention mask, the first two of the second row are padding."""

_NEIGHBOURS = 4  # rows to be tried beside another, for whether they change its last bits


@dataclass
class Pass:
    """What one forward pass gave: its cache, and its first tensor of numbers [B, S, ...], logits as a rule."""

    output: Any
    cache: Any
    numbers: torch.Tensor


class Passes:
    """A prefill and a decode step of a model, before it has a memory; `again` repeats them when it has.

    Nothing of them stays: no random number is drawn, no cache kept, and no module's mode changed.

    Args:
        model: a language model of transformers.
        rows (int64 [2, TOKENS]): token ids.

    Raises:
        UnsupportedModelError: the model does not run on token ids, or gives no cache though it keeps or needs one.
    """

    def __init__(self, model: Any, rows: torch.Tensor) -> None:
        self.model = model
        self._ids = rows.to(device_of(model))
        self._mask = torch.ones_like(self._ids)
        if self._takes("attention_mask"):
            self._mask[1, :2] = 0
        self._takes_back: str | None = None
        self._positioned = False
        with _untouched(model):
            self.prefill = self.run_prefill()
            if self.prefill.cache is None:
                self._require_no_memory_of_its_own()
                self.decode = None
            else:
                self._takes_back = self._name_of_cache(self.prefill)
                self.decode = self._first_decode()

    @property
    def counts(self) -> torch.Tensor:
        """Tokens of each row's prompt that are no padding, [2]."""
        return self._mask.sum(dim=1)

    @property
    def mask(self) -> torch.Tensor:
        """bool [2, TOKENS], the tokens that are no padding."""
        return self._mask.bool()

    @property
    def ids(self) -> torch.Tensor:
        """int64 [2, TOKENS], the prompts."""
        return self._ids

    def run_prefill(self, neighbour: int = 0) -> Pass:
        """The prompts; `neighbour` is added to the second row's ids, modulo the largest of all."""
        ids = self._ids.clone()
        if neighbour:
            ids[1] = (ids[1] + neighbour) % (int(ids.max()) + 1)
        return self._run(input_ids=ids, attention_mask=self._mask)

    def run_decode(self, cache: Any = None) -> Pass:
        """One token after the prompts; without a cache, by itself."""
        token, mask = self._ids[:, -1:], torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        if cache is None:
            return self._run(input_ids=token, attention_mask=mask[:, -1:])
        given = {"input_ids": token, "attention_mask": mask, self._takes_back or "": cache}
        if self._positioned:
            given["position_ids"] = torch.full_like(token, TOKENS)
        return self._run(**given)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within the block, the passes may be run again, on the model as it is then."""
        with _untouched(self.model):
            yield

    def _run(self, **given: Any) -> Pass:
        if self._takes("use_cache"):
            given["use_cache"] = True
        if not self._takes("attention_mask"):
            del given["attention_mask"]
        try:
            output = self.model(**given)
        except (torch.OutOfMemoryError, UnsupportedModelError):
            raise
        except Exception as error:
            shown = str(error).strip().splitlines() or [""]
            raise unsupported(
                self.model, f"its forward pass on two short rows failed ({type(error).__name__}: {shown[0]})"
            ) from error
        numbers = _numbers(output, len(self._ids))
        if numbers is None:
            raise unsupported(
                self.model, f"its output, a {type(output).__name__}, holds no tensor [B, S, ...] of numbers"
            )
        return Pass(output, find_cache(output), numbers)

    def _first_decode(self) -> Pass:
        try:
            return self.run_decode(self.prefill.cache)
        except UnsupportedModelError:
            if not self._takes("position_ids"):
                raise
        # Qwen2-VL keeps positions of its latest `generate` to itself, and goes by them where it is given none.
        self._positioned, self.prefill = True, self.run_prefill()
        return self.run_decode(self.prefill.cache)

    def _takes(self, name: str) -> bool:
        parameters = inspect.signature(self.model.forward).parameters
        return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())

    def _name_of_cache(self, first: Pass) -> str:
        """The name of the argument that takes a cache back: the output's own, or else the one that is declared so."""
        parameters = inspect.signature(self.model.forward).parameters
        items = first.output.items() if hasattr(first.output, "items") else vars(first.output).items()
        own = [name for name, value in items if value is first.cache]
        declared = [name for name, one in parameters.items() if "Cache" in str(one.annotation)]
        taken = [name for name in own if name in parameters] + declared
        for name in taken or [name for name in own if self._takes(name)]:
            return name
        raise unsupported(self.model, "no argument was found that takes its cache back")

    def _require_no_memory_of_its_own(self) -> None:
        """Without a cache, each pass must be a prompt by itself, and `generate` must know of none either."""
        for module, name, _ in _kept_caches(self.model):
            raise unsupported(self.model, f"it keeps its cache to itself, in {name} of a {type(module).__name__}")
        output = self.prefill.output
        if holds_tuples(output.values() if hasattr(output, "values") else output if isinstance(output, tuple) else ()):
            raise unsupported(
                self.model, "its output holds keys and values as tuples of tensors, not in a cache object"
            )
        parameters = inspect.signature(self.model.forward).parameters
        if "use_cache" in parameters and callable(getattr(self.model, "generate", None)):
            raise unsupported(self.model, "no cache was found in its output, with use_cache=True")
        if not _same(self.run_decode().numbers, self.run_decode().numbers):
            raise unsupported(self.model, "one token gave two outputs in two passes: it keeps what it saw to itself")


def prove(plain: Passes, layer: Any, router: Any) -> None:
    """Runs the passes again on the model with its memory, where the second row alone follows an edit.

    Args:
        plain: what the model gave without a memory.
        layer (MemoirLinear): its edited layer.
        router (Router): what follows its sequences. Its `last_routes` are empty afterwards.

    Raises:
        UnsupportedModelError: something that routing relies on does not hold; the message says what.
    """
    try:
        with plain.again():
            _Proof(plain, layer, router).run()
    finally:
        router.forget_last()


class _Proof:
    def __init__(self, plain: Passes, layer: Any, router: Any) -> None:
        self._plain, self._layer, self._router = plain, layer, router
        self._layers = [layer, *layer.further]
        self._changed = layer
        """The layer whose output is another one for the second row."""
        self._seen: list[tuple[torch.Tensor, Any]] = []
        self._reached: list[Any] = []
        self._entered: list[torch.Tensor] = []

    def run(self) -> None:
        for layer in self._layers:
            self._changed = layer
            self._run()

    def _run(self) -> None:
        plain = self._plain
        self._entered.clear()
        watched = self._watched() if self._router.site is not None else None
        try:
            prefill = self._routed(plain.run_prefill, TOKENS)
        finally:
            if watched is not None:
                watched.remove()
        x, _ = self._seen[0]
        self._compare("prefill", prefill.numbers, plain.prefill.numbers)
        if plain.decode is None:
            return
        state = remembered(prefill.cache)
        if state is None:
            self._fail("the route was not kept on the cache that a prefill gives back")
        self._require_lengths("a prefill", state, prefill.cache, TOKENS)
        for found, expected in self._read(state, x):
            if expected.isfinite().all() and not _close(found, expected, 1e-3):
                self._fail(
                    "the tokens of each row that are no padding were not told apart from padding or from other rows"
                )
        decode = self._routed(lambda: plain.run_decode(prefill.cache), 1)
        if remembered(prefill.cache) is not state:
            self._fail("the route was not found again on the cache of a decode step")
        self._require_lengths("a decode step", state, prefill.cache, TOKENS + 1)
        self._compare("decode step", decode.numbers, plain.decode.numbers)

    def _read(self, state: Any, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What was read of the prompts, and what should have been, where each row's real tokens stand by themselves."""
        rows = list(zip(x, self._plain.mask.to(x.device), strict=True))
        site = self._router.site
        if site is None:
            yield state.mean, torch.stack([row[real].float().mean(dim=0) for row, real in rows])
            return
        hidden, ids = self._entered[0], self._plain.ids
        parts = []
        for row, own, real in zip(hidden, ids, self._plain.mask, strict=True):
            states, tokens = row[real.to(row.device)][None], own[real][None].to(row.device)
            parts.append(site.code.read(None, states, tokens, torch.ones_like(tokens).bool()))
        yield state.sums.mass, torch.cat([one.mass for one in parts])
        yield state.sums.sums, torch.cat([one.sums for one in parts])

    def _watched(self) -> Any:
        """Takes note of what enters the routing site's block, where there is one, until it is removed."""

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._entered.append(hidden_states(args, kwargs).detach())

        return self._router.site.block.register_forward_pre_hook(note, with_kwargs=True)

    def _routed(self, run: Any, tokens: int) -> Pass:
        """A pass whose second row gets another output of a layer, as if it followed an edit."""
        self._seen.clear()
        self._reached.clear()

        def given(layer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if x.dim() != 3 or x.shape[:2] != (2, tokens):
                self._fail(f"the edited layer's input must be [B, S, D] = [2, {tokens}, D], got {list(x.shape)}")
            if layer is self._layer:
                self._seen.append((x.detach(), self._router.edits(x).tolist()))
            self._reached.append(layer)
            if layer is not self._changed or not self._seen:
                return y
            route = torch.tensor(self._seen[-1][1], device=y.device)
            size = y.detach().abs().amax()
            change = torch.linspace(-1, 1, y.shape[-1], device=y.device) * torch.where(size > 0, size, 1).float()
            return torch.where((route >= 0)[:, None, None], (y + change).to(y.dtype), y)

        with self._router.overridden(forced=(-1, 0)), ExitStack() as replaced:
            for layer in self._layers:
                replaced.enter_context(layer.replacing_output(partial(given, layer)))
            found: Pass = run()
        if len(self._seen) != 1:
            self._fail(f"the edited layer must run once in a forward pass, it ran {len(self._seen)} times")
        if self._reached != self._layers:
            order = [self._layers.index(layer) for layer in self._reached]
            self._fail(f"the edited layer and its further ones must run once each and in their order, they ran {order}")
        if self._seen[0][1] != [-1, 0]:
            self._fail(f"rows that were routed to -1 and 0 went to {self._seen[0][1]} in a pass of {tokens} tokens")
        return found

    def _require_lengths(self, where: str, state: Any, cache: Any, length: int) -> None:
        held = counted(cache)
        if state.length != length or held is not None and int(held) != length:
            self._fail(
                f"after {where} {length} positions must be held, the cache says {held}, {state.length} were seen"
            )
        expected = (self._plain.counts + length - TOKENS).tolist()
        if state.count.flatten().tolist() != expected:
            self._fail(f"after {where} {expected} tokens were seen that are no padding, {state.count.tolist()} counted")

    def _compare(self, where: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        if not expected[0].isfinite().all() or not expected[1, -1].isfinite().all():
            return  # then nothing can be said; attach refuses activations that are not finite
        if not _same(found[0], expected[0]) and not self._depends_on_neighbours(found[0], expected[0]):
            self._fail(f"the output of a row that follows no edit changed in a {where}")
        if _same(found[1, -1], expected[1, -1]):
            self._fail(f"a change of the edited layer's output did not reach the model's output in a {where}")

    def _depends_on_neighbours(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether only the last bits changed, and another row changes them too in this model without a memory."""
        with self._layer.replacing_output(lambda x, y: y):  # so further layers give what their base layers do
            others = (self._plain.run_prefill(neighbour).numbers[0] for neighbour in range(1, _NEIGHBOURS + 1))
            alone = all(_same(other, self._plain.prefill.numbers[0]) for other in others)
        return not alone and _close(found, expected, 0.05)

    def _fail(self, what: str) -> None:
        raise unsupported(self._plain.model, what)


def unsupported(model: Any, what: str) -> UnsupportedModelError:
    """The error of a model in which `what` does not hold, with the versions that it was seen in."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "memoir-fast"))
    return UnsupportedModelError(
        f"{type(model).__name__} ({type(model).__module__}) cannot be given a memory here ({versions}): {what}. "
        "Try a version of transformers that docs/versions.md lists as tested. MemoirConfig(check=False) leaves this "
        "proof out; then a route may be lost after the first token, and nothing will say so"
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of a checkout" if name == "memoir-fast" else "not installed"


def _numbers(output: Any, rows: int) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        parts: Any = [output]
    elif isinstance(output, (tuple, list)):
        parts = output
    else:
        parts = output.values() if hasattr(output, "values") else vars(output).values()
    for one in parts:
        if isinstance(one, torch.Tensor) and one.is_floating_point() and one.dim() > 1 and len(one) == rows:
            return one.detach()
    return None


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.shape == right.shape and bool(((left == right) | (left.isnan() & right.isnan())).all())


def _close(left: torch.Tensor, right: torch.Tensor, share: float) -> bool:
    """Whether no element differs by more than a share of the largest magnitude."""
    return bool((left.float() - right.float()).abs().max() <= share * right.float().abs().max())


def _kept_caches(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Caches that modules keep as attributes: the module, the attribute, the cache."""
    return [
        (module, name, value)
        for module in model.modules()
        for name, value in module.__dict__.items()
        if not isinstance(value, (dict, bool, int, float, str)) and is_cache(value)
    ]


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Runs the model without gradients and in eval mode, and leaves no trace of that."""
    training = [module for module in model.modules() if module.training]
    before = {module: dict(module.__dict__) for module in model.modules()}
    devices = {one.device for one in model.parameters() if one.device.type == "cuda"}
    with uncompiled(model.modules()), torch.random.fork_rng(devices), torch.no_grad():
        try:
            for module in training:
                module.training = False
            for module, name, cache in _kept_caches(model):
                setattr(module, name, copy.deepcopy(cache))
            yield
        finally:
            for module, name, _ in _kept_caches(model):
                if name in before[module]:
                    setattr(module, name, before[module][name])
                else:
                    delattr(module, name)
            for module in training:
                module.training = True
