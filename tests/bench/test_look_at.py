"""The lines that say what to look at, and rows of older kernels."""

import pytest


@pytest.fixture
def figures():
    spread = {"p20": 1e-5, "p50": 2e-5, "p80": 3e-5, "samples": 9}
    peers = {
        "dense product": {"same": False, "ratio": 0.5, "ratios": {"graph cold": 0.5}},
        "torch eager": {"same": True, "ratio": 0.9},
        "torch.topk alone": {"same": False, "ratio": 0.1},
        "slow": {"same": True, "ratio": 3.0},
    }
    slow = {"bench": "masked_linear", "case": "1 x 64 tokens, D=14336, bfloat16", "headline": "graph cold"}
    slow |= {"seconds": {"graph cold": spread}, "peers": peers, "parameters": {}}
    wrong = {"bench": "tophash", "case": "1 row", "parameters": {}, "failed": "differs from the reference"}
    return {"machine": {"device": "cuda"}, "rows": [slow, wrong]}


def test_everything_wrong_or_slow_has_a_line(bench, figures, tmp_path):
    (tmp_path / "tests.log").write_text("....\nFAILED tests/a.py::test_b[cuda] - AssertionError: no\n1 failed in 2s\n")
    lines = bench("look_at").lines(figures, tmp_path)
    assert lines[0] == "WRONG   tophash: 1 row: differs from the reference"
    assert lines[1] == "FAILED  tests/a.py::test_b[cuda]: AssertionError: no"
    assert lines[2].startswith(
        "missed  masked_linear, 1 x 64 tokens, D=14336, bfloat16: times the dense product's speed"
    )
    assert [line.split(": ")[-1] for line in lines[3:]] == ["dense product takes 0.50x", "torch eager takes 0.90x"]


def test_nothing_to_look_at_is_said(bench):
    (line,) = bench("look_at").lines({"machine": {"device": "cuda"}, "rows": []})
    assert line.startswith("nothing")


def test_lines_are_few(bench, figures):
    figures["rows"] *= 50
    assert len(bench("look_at").lines(figures)) == bench("look_at").MOST_LINES


def test_a_row_of_other_sources_is_old(bench, tmp_path, monkeypatch):
    sources, table = bench("sources"), bench("table")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/tophash.py").write_text("one")
    for name in ("tophash.cu", "tophash_cpu.cpp", "hash.cu", "block_sums.cuh", "other.cu"):
        (tmp_path / "csrc" / name).write_text("one")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    sources.today.cache_clear()
    try:
        row = {"bench": "tophash", "sources": sources.today("tophash", "cuda")}
        assert sources.files("tophash", "cuda") == [
            "csrc/block_sums.cuh",
            "csrc/hash.cu",
            "csrc/tophash.cu",
            "kernels/tophash.py",
        ]
        assert sources.files("tophash", "cpu") == ["csrc/tophash_cpu.cpp"]
        assert not sources.is_old(row, "cuda") and sources.is_old({"bench": "tophash"}, "cuda")
        (tmp_path / "csrc/other.cu").write_text("two")
        (tmp_path / "csrc/tophash_cpu.cpp").write_text("two")
        sources.today.cache_clear()
        assert not sources.is_old(row, "cuda"), "neither matters to tophash on a GPU"
        (tmp_path / "csrc/tophash.cu").write_text("two")
        sources.today.cache_clear()
        assert sources.is_old(row, "cuda")
        figures = {"machine": {"device": "cuda"}}
        assert table._age(row, figures) == table.OLDER
        assert table._age(row | {"sources": sources.today("tophash", "cuda")}, figures) == table.TODAYS
    finally:
        sources.today.cache_clear()


def test_a_pattern_that_matches_no_file_fails_loudly(bench, tmp_path, monkeypatch):
    sources = bench("sources")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/tophash.py").write_text("one")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    with pytest.raises(LookupError, match=r"no file matches 'csrc/tophash\*', which bench/bench_tophash.py names"):
        sources.files("tophash", "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_benchmark_names_its_sources(bench, device):
    """A pattern that an op's files have outgrown, or none at all, would let an old figure pass for one of today's."""
    benchmarks, sources = bench("benchmarks"), bench("sources")
    for benchmark in benchmarks.ON_CPU if device == "cpu" else benchmarks.ON_GPU:
        assert sources.files(benchmark.name, device), benchmark.name
        assert sources.is_old({"bench": benchmark.name}, device), "a row that does not say of which sources it is"


class _Cuda:
    """A stand-in for the parts of torch.cuda that a capture uses; `fails` names the stage that raises."""

    def __init__(self, fails=None):
        self.fails, self.mode, self.capturing, self.stream = fails, 0, False, "main"
        self.generator_counts_for_a_capture, self.captures = False, 0

    def make(self, torch, monkeypatch):
        cuda = self

        class Stream:
            def wait_stream(self, other):
                pass

        class On:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                self.before, cuda.stream = cuda.stream, self.stream

            def __exit__(self, *_):
                cuda.stream = self.before

        class Graph:
            def __init__(self, graph):
                pass

            def __enter__(self):
                cuda.capturing, cuda.stream = True, "capture"
                cuda.generator_counts_for_a_capture = True

            def __exit__(self, kind, *_):
                cuda.capturing = False
                if kind is None:  # one that fails leaves everything behind
                    cuda.stream, cuda.generator_counts_for_a_capture = "main", False
                    cuda.captures += 1

        main = Stream()
        for name, value in {
            "Stream": Stream,
            "stream": On,
            "graph": Graph,
            "CUDAGraph": object,
            "current_stream": lambda: main,
            "set_stream": lambda stream: setattr(cuda, "stream", "main" if stream is main else stream),
            "synchronize": lambda: None,
            "get_sync_debug_mode": lambda: cuda.mode,
            "set_sync_debug_mode": lambda mode: setattr(cuda, "mode", mode),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def call(self, _):
        if self.fails == "waits" and self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.fails == "capture" and self.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("fails", [None, "waits", "capture"])
def test_a_call_that_cannot_be_captured_leaves_nothing_behind(bench, monkeypatch, fails):
    measure, cuda = bench("measure"), _Cuda(fails)
    cuda.make(measure.torch, monkeypatch)
    if fails:
        with pytest.raises(RuntimeError, match="synchronizing" if fails == "waits" else "not permitted"):
            measure.captured(cuda.call, sets=2, calls=4)
    else:
        measure.captured(cuda.call, sets=2, calls=4)
    assert (cuda.mode, cuda.stream, cuda.generator_counts_for_a_capture) == (0, "main", False)
    assert cuda.captures == (0 if fails == "waits" else 1), "what waits is not captured at all"
