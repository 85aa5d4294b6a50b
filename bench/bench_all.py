"""Every benchmark as a case of pytest-benchmark: `pytest bench --benchmark-only`; on the GPU where there is one.

The result is checked before it is timed, as in bench/run.py; peers, cold caches and graphs are that driver's.
"""

from typing import Any

import pytest
import torch
from bench_edit import seconds_of
from bench_generate import PROMPT, Variants, cache_argument, decode
from benchmarks import ON_CPU
from cases import Case, Settings, benchmarked
from models import sharing

from memoir_fast import Memoir
from memoir_fast.errors import MemoirError
from memoir_fast.hf.cache import find_cache
from memoir_fast.hf.loading import load_model
from memoir_fast.io.facts import facts

SETTINGS = Settings(device="cuda" if torch.cuda.is_available() else "cpu", compile=False, peers=False)
CASES = [case for benchmark in ON_CPU for case in benchmark.cases(SETTINGS)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def smollm() -> tuple[Any, Any]:
    try:
        model, tokenizer = load_model("smollm2", "float32", SETTINGS.device)
    except MemoirError as error:
        pytest.skip(str(error))
    return model.requires_grad_(False), tokenizer


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(benchmark: Any, case: Case) -> None:
    benchmarked(benchmark, case, SETTINGS)


def test_edit(benchmark: Any, smollm: tuple[Any, Any]) -> None:
    """One fact by the fast recipe, learned anew each time."""
    model, tokenizer = smollm
    memoir, fact = Memoir.attach(sharing(model), tokenizer), facts()[0]
    seconds_of(memoir, [fact])
    benchmark.pedantic(seconds_of, (memoir, [fact]), rounds=3)


@pytest.mark.parametrize("name", ["unedited", "unmatched", "matched"])
def test_decode(benchmark: Any, smollm: tuple[Any, Any], name: str) -> None:
    """One token of a model with 7,000 stored edits."""
    model, tokenizer = smollm
    tokens = torch.randint(1000, 10_000, (1, 64), device=model.device)
    variants = Variants(model, tokenizer, 7_000, tokens)
    decode(variants, tokens[:, :PROMPT], 1, lambda: None)
    variants.require_routes(7_000)
    step = variants.models[name]
    with torch.no_grad():
        cache = find_cache(step(input_ids=tokens[:, :PROMPT], use_cache=True))
        one = {"input_ids": tokens[:, :1], cache_argument(step): cache, "use_cache": True}
        benchmark.pedantic(lambda: step(**one).logits.argmax(-1).cpu(), rounds=20, warmup_rounds=2)
