"""What a server counts and measures, in Prometheus' text format."""

import math
import time
from collections.abc import Callable
from typing import Any

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Edits, pages, matches and misses, the estimate of false matches, and how long requests and generations took.

    There is nothing in them of prompts, keys or names of banks.

    Args:
        memoir (Memoir): the memory that is served.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, memoir: Any) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._memoir = memoir
        self._registry = CollectorRegistry()
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "memoir_edits": ("Live edits.", lambda: len(memoir.edits)),
            "memoir_pages": ("Pages of the memory.", lambda: len(memoir.layer.memory.numbers)),
            "memoir_tau": ("The threshold on the overlap ratio.", lambda: memoir.tau),
            "memoir_false_match_rate": (
                "Share of irrelevant prompts that the latest calibration expects to match now; NaN without one.",
                self._false_match_rate,
            ),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=self._registry).set_function(value)
        self._prompts = Counter(
            "memoir_prompts", "Prompts that were generated from.", ["matched"], registry=self._registry
        )
        for matched in ("yes", "no"):
            self._prompts.labels(matched)
        self._requests = Histogram(
            "memoir_request_seconds",
            "From a request to the end of its answer.",
            ["path"],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._generations = Histogram(
            "memoir_generation_seconds",
            "One generation, without its turn being waited for.",
            registry=self._registry,
            buckets=_SECONDS,
        )

    def request(self, path: str, seconds: float) -> None:
        """Notes a request; `path` is one of few."""
        self._requests.labels(path).observe(seconds)

    def generation(self, generate: Callable[[], Any]) -> Any:
        """Generates, notes how long it took and where its prompt went, and gives what `generate` gives."""
        router = self._memoir.layer.router
        router.forget_last()  # one that is cancelled before its prompt was read has no route
        started = time.perf_counter()
        try:
            return generate()
        finally:
            self._generations.observe(time.perf_counter() - started)
            routes = self._memoir.last_routes
            if routes:
                self._prompts.labels("yes" if any(one.edit_id >= 0 for one in routes) else "no").inc()

    def text(self) -> bytes:
        """All of them as they are now, for a scrape."""
        from prometheus_client import generate_latest

        written: bytes = generate_latest(self._registry)
        return written

    def _false_match_rate(self) -> float:
        found = self._memoir.calibration
        return math.nan if found is None else found.rate(self._memoir.tau, len(self._memoir.edits))
