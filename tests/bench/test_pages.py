"""What a memory of many pages costs, measured on small ones."""

import pytest
import torch

from memoir_fast import MemoirConfig


@pytest.fixture
def pages(bench):
    return bench("bench_pages")


def test_a_memory_is_spread_over_pages_and_opened(pages, monkeypatch):
    monkeypatch.setattr(pages, "_alone", lambda _, folder: pages.opened(folder))
    monkeypatch.setattr(pages, "MOST_PAGES", 2)
    found = pages.opening(300)
    assert (found["N"], found["pages"], found["pages_made"]) == (300, 4, 2)
    assert found["memory_bytes"] == 2 * found["memory_bytes_made"] == 4 * 1536 * 576 * 4
    assert found["memory_bytes_made"] < found["saved_bytes"] < 1.2 * found["memory_bytes_made"]
    assert found["open_peak_bytes"] > 0 and found["open_seconds"] > found["search_seconds"] > 0


def test_a_store_grows_by_little_more_than_its_rows(pages):
    found = pages.growing(33_000)  # just more than a table that has doubled
    assert found["rows_bytes"] == 33_000 * 1792
    assert found["grow_peak_bytes"] < 1.3 * found["rows_bytes"] + (16 << 20), "rows were copied"
    assert found["grow_seconds"] >= found["grow_slowest_seconds"] > 0


def test_variants_go_where_their_names_say(pages, bench, tiny_llama, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(pages, "MemoirConfig", lambda **options: MemoirConfig(k=12, **options))
    tokens = torch.randint(3, 300, (1, 16))
    variants = pages.Paged(tiny_llama, tiny_tokenizer, 200, (1, 3), tokens)
    assert list(variants.models) == [
        "unedited",
        *(f"{name}, {made}" for made in ("1 page", "3 pages") for name in ("unmatched", "matched")),
    ]
    samples = bench("bench_generate").decode(variants, tokens, 3, lambda: None)
    assert {len(taken) for taken in samples.values()} == {3} and list(samples) == list(variants.models)
    store = variants.memoirs["matched, 3 pages"].layer.store
    assert (
        store.page[:200].tolist() == [edit // pages.PER_PAGE % 3 for edit in range(200)] and int(store.page[200]) == 2
    )
    assert variants.memoirs["matched, 3 pages"].last_routes[0].edit_id == 200
