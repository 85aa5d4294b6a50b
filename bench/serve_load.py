"""Requests per second of `memoir serve` beside transformers' server with the same model unedited, in one run.

    python bench/serve_load.py --model smollm2 --edits 16 --requests 16 --at-once 16 --tokens 8 --rounds 5

Both servers and the client are threads of this process, on loopback. Half of the requests ask an edit's prompt, half
something unrelated. The servers take turns, so that what else the machine does falls on both; the ratio is the median
of the rounds'. Exit code 1: an answer failed, or was another in a later round.
"""

import argparse
import copy
import http.client
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from memoir_fast import Memoir
from memoir_fast.hf import server
from memoir_fast.hf.loading import load_model
from memoir_fast.io.facts import facts, unrelated
from memoir_fast.serving.app import application


@contextmanager
def running(app: Any) -> Iterator[int]:
    """The port of a server that runs in a thread for as long as the block."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        one = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=one.run, args=([bound],))
        thread.start()
        try:
            yield bound.getsockname()[1]
        finally:
            one.should_exit = True
            thread.join()


def ask(port: int, prompt: str, tokens: int) -> str:
    """What a server completes a prompt with."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"a request failed: {answer.status} {said.decode()[:200]}")
    return str(json.loads(said)["choices"][0]["text"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    for name, value in {"edits": 16, "requests": 16, "at-once": 16, "tokens": 8, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    model, tokenizer = load_model(given.model, "float32", "cpu")
    plain = copy.deepcopy(model)
    memoir = Memoir.attach(model, tokenizer)
    taught = facts()[: given.edits]
    memoir.edit([(one.prompt, one.target) for one in taught], progress=False)
    kinds = [one.prompt for one in taught], [prompt for prompt, _ in unrelated()]
    prompts = [kinds[number % 2][number // 2 % len(kinds[number % 2])] for number in range(given.requests)]
    apps = {"unedited": server.build(plain, tokenizer, "plain"), "with a memory": application(memoir, "edited")}
    seconds: dict[str, list[float]] = {name: [] for name in apps}
    said: dict[str, list[str]] = {}
    with (
        ThreadPoolExecutor(given.at_once) as many,
        running(apps["unedited"]) as first,
        running(apps["with a memory"]) as second,
    ):
        ports = dict(zip(apps, (first, second), strict=True))
        for turn in range(given.rounds + 1):  # the first warms up
            for name, port in ports.items():
                started = time.perf_counter()
                answers = list(many.map(partial(ask, port, tokens=given.tokens), prompts))
                if turn:
                    seconds[name].append(time.perf_counter() - started)
                if said.setdefault(name, answers) != answers:
                    raise SystemExit(f"the server {name} answered otherwise in round {turn}")
    matched = sum(one != other for one, other in zip(*said.values(), strict=True))
    print(
        f"{given.model}, {given.edits} edits, {given.requests} requests, {given.at_once} at once, {given.tokens} tokens"
    )
    for name, took in seconds.items():
        print(f"{name:14} {given.requests / statistics.median(took):8.2f} requests/s, median of {given.rounds} rounds")
    ratios = [one / other for one, other in zip(*seconds.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); {matched} answers differ")


if __name__ == "__main__":
    main()
