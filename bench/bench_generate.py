"""Tokens per second of a whole model: unedited, with edits that the prompt does not match, and with one that it does.

    python bench/bench_generate.py [--json FILE] [--stored 7000] [--rounds 7] [--threads 1] [--gpu] [--further 3]

On the CPU the packaged SmolLM2-135M in float32; with --gpu a Llama of LLaMA-3-8B's sizes with random bfloat16 weights,
built on the device. All variants are over the same weights in one process and take turns token by token, so that
whatever else the machine does hits all of them; a ratio is the median over steps of the ratio within a step. Tokens are
decoded by forward passes with a KV cache: the time of `generate`'s own loop would only hide differences.
"""

import argparse
import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import bench_layer
import measure
import torch
from benchmark import Benchmark, told
from cases import Settings
from figure import plain
from models import llama_8b, sharing
from shapes import Layer, columns, mask_of

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.errors import MemoirError
from memoir_fast.hf.cache import find_cache
from memoir_fast.hf.loading import load_model

VARIANTS = ("unedited", "unmatched", "matched")
WANTED = {"decode": {"unmatched": 0.99, "matched": 0.95}, "prefill": {"unmatched": 0.95, "matched": 0.95}}
PROMPT, PREFILL, STEPS = 16, 64, 24


class Variants:
    """One model three times over the same weights."""

    def __init__(self, model: Any, tokenizer: Any, stored: int, tokens: torch.Tensor, further: int = 0) -> None:
        self.models = {"unedited": model}
        self.memoirs: dict[str, Memoir] = {}
        for name in VARIANTS[1:]:
            memoir = Memoir.attach(sharing(model), tokenizer, MemoirConfig(routing="paper", further=further))
            self._fill(memoir, stored)
            self.models[name], self.memoirs[name] = memoir.model, memoir
        for length in (PROMPT, PREFILL):
            self._store_mask_of(self.memoirs["matched"], tokens[:, :length])

    @staticmethod
    def _fill(memoir: Memoir, stored: int) -> None:
        layer, device = memoir.layer, str(memoir.layer.memory.weight.device)
        shape = Layer("", layer.in_features, layer.out_features, layer.k)
        own = columns(min(stored, 1024), shape, device)
        layer.store.extend(mask_of(own, shape).to(device).repeat(-(-stored // len(own)), 1)[:stored])
        layer.memory.weight.normal_().mul_(1e-3)

    @staticmethod
    @torch.no_grad()
    def _store_mask_of(memoir: Memoir, tokens: torch.Tensor) -> None:
        """Adds an edit whose mask is that of these tokens."""
        seen: list[torch.Tensor] = []
        handle = memoir.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with memoir.disabled():
                memoir.model(input_ids=tokens, use_cache=False)
        finally:
            handle.remove()
        mask, _ = memoir.layer.hash(seen[0])
        memoir.layer.store.append(mask[0])

    def require_routes(self, stored: int) -> None:
        """Raises AssertionError where a prompt did not go where its variant says."""
        for name, memoir in self.memoirs.items():
            edit = memoir.last_routes[0].edit_id
            assert (edit >= stored) if name.startswith("matched") else edit == -1, f"{name}: went to edit {edit}"


@torch.no_grad()
def decode(
    variants: Variants,
    tokens: torch.Tensor,
    steps: int,
    synchronize: Callable[[], Any],
    clock: Callable[[], float] = time.perf_counter,
) -> measure.Samples:
    """Seconds, by `clock`, of each of `steps` decode steps per variant, taken in turn after a prefill of `tokens` each.

    All are fed the unedited model's choice, so that they do the same work.
    """
    found: measure.Samples = {name: [] for name in variants.models}
    outputs = {name: model(input_ids=tokens, use_cache=True) for name, model in variants.models.items()}
    caches = {name: find_cache(output) for name, output in outputs.items()}
    argument = cache_argument(variants.models["unedited"])
    chosen = outputs["unedited"].logits[:, -1:].argmax(-1)
    for step in range(steps):
        following = chosen
        for name in _order(step, tuple(variants.models)):
            synchronize()
            start = clock()
            output = variants.models[name](input_ids=chosen, use_cache=True, **{argument: caches[name]})
            picked = output.logits[:, -1:].argmax(-1)
            synchronize()
            found[name].append(clock() - start)
            following = picked if name == "unedited" else following
        chosen = following
    return found


def cache_argument(model: Any) -> str:
    """What a model's cache is called among its arguments: it has another name from transformers 5.24 on."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


@torch.no_grad()
def prefill(variants: Variants, tokens: torch.Tensor, rounds: int, synchronize: Callable[[], Any]) -> measure.Samples:
    """Seconds of each prefill."""
    found: measure.Samples = {name: [] for name in VARIANTS}
    for turn in range(rounds + 1):
        for name in _order(turn):
            synchronize()
            start = time.perf_counter()
            variants.models[name](input_ids=tokens, use_cache=True, logits_to_keep=1)
            synchronize()
            found[name].append(time.perf_counter() - start)
    return {name: taken[1:] for name, taken in found.items()}


def _step(model: Any, inputs: dict[str, Any], _: int) -> Any:
    return model(**inputs)


@torch.no_grad()
def graph_decode(variants: Variants, tokens: torch.Tensor, turns: int) -> measure.Samples:
    """Seconds of a decode step replayed from a CUDA graph, per variant; as `decode` otherwise, with a static cache."""
    from transformers import StaticCache

    replays = {}
    for name in VARIANTS:
        model = variants.models[name]
        cache = StaticCache(config=model.config, max_cache_len=PROMPT + 2 * turns + 64)
        argument = cache_argument(model)
        model(input_ids=tokens, use_cache=True, **{argument: cache})
        step = {"input_ids": tokens[:, -1:].clone(), argument: cache, "use_cache": True}
        graph = measure.captured(partial(_step, model, step), sets=3, calls=1)
        replays[name] = graph, step  # the cache and the tokens that the graph reads live as long as it does
    found: measure.Samples = {name: [] for name in VARIANTS}
    for turn in range(turns + 3):
        for name in _order(turn):
            taken = measure.event_seconds(replays[name][0].replay)
            found[name] += [taken] if turn >= 3 else []
    return found


def _order(turn: int, names: tuple[str, ...] = VARIANTS) -> tuple[str, ...]:
    """The variants in each order in turn: what runs next finds the caches as the one before has left them."""
    orders = tuple(itertools.permutations(names))
    return orders[7 * turn % len(orders)]  # of five variants too, few turns begin with each


def measure_model(model: Any, tokenizer: Any, stored: int, rounds: int, further: int = 0) -> dict[str, Any]:
    """All figures of one model with `stored` synthetic edits, in a layer and so many further ones."""
    device = next(model.parameters()).device
    synchronize: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    tokens = torch.randint(1000, 10_000, (1, PREFILL), generator=torch.Generator().manual_seed(0)).to(device)
    variants = Variants(model, tokenizer, stored, tokens, further)
    found: dict[str, Any] = {"stored": stored, "threads": torch.get_num_threads(), "device": device.type}
    decoded: measure.Samples = {name: [] for name in VARIANTS}
    for turn in range(rounds + 1):
        taken = decode(variants, tokens[:, :PROMPT], STEPS, synchronize)
        variants.require_routes(stored)
        for name in VARIANTS if turn else ():
            decoded[name] += taken[name]
    found["decode"] = _summary(decoded, tokens=1)
    if device.type == "cuda":
        try:
            found["decode, graph"] = _summary(graph_decode(variants, tokens[:, :PROMPT], 10 * rounds), tokens=1)
        except RuntimeError as error:
            torch.cuda.synchronize()
            found["decode, graph"] = {"absent": " ".join(str(error).split())[:200]}
    found["prefill"] = _summary(prefill(variants, tokens, 3 * rounds, synchronize), tokens=PREFILL)
    variants.require_routes(stored)
    for memoir in variants.memoirs.values():
        memoir.detach()
    return found


def _summary(samples: measure.Samples, tokens: int) -> dict[str, Any]:
    return {
        name: {
            "tokens_per_second": tokens / median(taken),
            "over_unedited": measure.ratio(samples, "unedited", name),
            "seconds": vars(measure.spread(taken)),
        }
        for name, taken in samples.items()
    }


def rows(settings: Settings, _: object) -> Iterator[dict[str, Any]]:
    """A row for each number of stored edits."""
    on_gpu = settings.device == "cuda"
    name = "Llama-3-8B's shape, random" if on_gpu else "SmolLM2-135M"
    numbers = {"model": name, "dtype": "bfloat16" if on_gpu else "float32", "device": settings.device}
    try:
        model, tokenizer = llama_8b() if on_gpu else load_model("smollm2", "float32", "cpu")
    except MemoirError as error:
        yield {"bench": "generate", "case": name, "parameters": numbers, "absent": str(error)}
        return
    sizes = (1_000,) if settings.quick else (7_000, 100_000) if on_gpu else (7_000, 1, 100_000)
    for stored in sizes:
        figures = measure_model(model, tokenizer, stored, rounds=1 if settings.quick else 6 if stored == 7_000 else 2)
        yield {
            "bench": "generate",
            "case": f"{name}, {stored:,} edits stored",
            "parameters": numbers | {"N": stored},
            "figures": figures,
            "targets": targets(figures, on_gpu) if stored == 7_000 else [],
        }


def targets(figures: dict[str, Any], on_gpu: bool) -> list[dict[str, Any]]:
    """What has to hold: a share of the unedited model's tokens per second."""
    phase = "decode" if "absent" in figures.get("decode, graph", {"absent": ""}) else "decode, graph"
    wanted = {phase: {"unmatched": 0.999, "matched": 0.995}} if on_gpu else WANTED
    if on_gpu and phase != "decode":
        wanted["decode"] = {"unmatched": 0.98, "matched": 0.98}
    return [
        {"what": f"{phase}, {name}, share of unedited", "value": figures[phase][name]["over_unedited"], "least": least}
        for phase, least_of in wanted.items()
        for name, least in least_of.items()
    ]


def summary(figures: dict[str, Any]) -> str:
    """One line: tokens per second of each variant."""
    speeds = {name: seen["tokens_per_second"] for name, seen in figures["decode"].items()}
    return "tokens/s: " + ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items())


def against_stored(figures: dict[str, Any], _: Sequence[dict[str, Any]], axes: Any) -> None:
    """Tokens per second of a whole model against stored edits."""
    rows = sorted(
        (row for row in figures["rows"] if row["bench"] == "generate" and "figures" in row),
        key=lambda row: row["figures"]["stored"],
    )
    for name in VARIANTS:
        shares = [100 * row["figures"]["decode"][name]["over_unedited"] for row in rows]
        if rows:
            axes.plot([row["figures"]["stored"] for row in rows], shares, "o-", label=name)
    if rows:
        speed = rows[0]["figures"]["decode"]["unedited"]["tokens_per_second"]
        axes.set_title(f"Decoding, {rows[0]['parameters']['model']}: unedited, {speed:.0f} tokens per second")
        axes.legend(fontsize=7.5, loc="lower left")
    axes.set(xscale="log", xlabel="stored edits N", ylabel="tokens per second, % of unedited", ylim=(80, 110))
    plain(axes, [row["figures"]["stored"] for row in rows])


BENCHMARK = Benchmark(
    "generate",
    (*bench_layer.SOURCES, "memoir_fast/hf/*.py"),
    rows=rows,
    most_seconds=75.0,
    gist=summary,
    plots={"generation": against_stored},
)


def main() -> None:
    """Prints the figures, and writes them where --json says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--stored", type=int, default=7_000, help="synthetic edits (default: 7000)")
    parser.add_argument("--rounds", type=int, default=7, help=f"runs of {STEPS} tokens each (default: 7)")
    parser.add_argument("--further", type=int, default=0, help="further layers of the memory (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--gpu", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model, tokenizer = llama_8b() if asked.gpu else load_model("smollm2", "float32", "cpu")
    found = measure_model(model.requires_grad_(False), tokenizer, asked.stored, asked.rounds, asked.further)
    found["targets"] = targets(found, asked.gpu)
    told(found, asked.json)


if __name__ == "__main__":
    main()
