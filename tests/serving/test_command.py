"""`memoir serve` as a process: what it acknowledged outlives `kill -9`."""

import dataclasses
import json
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from typer.testing import CliRunner

for _package in ("fastapi", "uvicorn", "openai", "prometheus_client"):
    pytest.importorskip(_package, reason="needs the extra serve")

from memoir_fast import RECIPES, Memoir, MemoirConfig  # noqa: E402
from memoir_fast.cli.app import app  # noqa: E402
from memoir_fast.errors import LockedError  # noqa: E402

ADMIN = "the-admins-own-token"
RECIPE = dataclasses.replace(RECIPES["fast"], prefixes=0, rewordings=0, questions=0, steps=3)


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path):
    """A folder with an empty memory that learns fast."""
    config = MemoirConfig(recipe=RECIPE, tau=0.9, background=8, check=False)
    memoir = Memoir.open(tiny_llama, tiny_tokenizer, tmp_path / "memory", config)
    memoir.detach()
    return tmp_path / "memory"


@pytest.fixture
def process(saved_model, folder, tmp_path):
    """A process that runs `memoir serve`, forked from this one, and the port that it said."""
    (tmp_path / "token").write_text(ADMIN)
    options = ["--port", "0", "--admin-token", str(tmp_path / "token"), "--name", "tiny"]
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            sys.stdout = os.fdopen(write, "w", buffering=1)
            code = app(["serve", "-m", saved_model, "--memory", str(folder), *options], standalone_mode=False) or 0
        finally:
            os._exit(code)
    os.close(write)
    try:
        with os.fdopen(read) as output:
            said = re.fullmatch(r"memoir serves at http://127.0.0.1:(\d+)/v1\n", output.readline())
        assert said
        yield child, int(said[1])
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def ended(child):
    """The exit code of a process, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_was_acknowledged_outlives_a_kill(process, connect, folder, tiny_llama, tiny_tokenizer):
    child, port = process
    client = connect(port)

    def teach(number):
        """The prompt, if it was acknowledged."""
        prompt = f"The number {number} is"
        try:
            status, said, _ = client("POST", "/memoir/edits", {"prompt": prompt, "target": "Rome"}, ADMIN)
        except OSError:
            return None
        assert status == 200 and said["prompt"] == prompt
        return prompt

    first = [teach(number) for number in range(3)]
    assert client("DELETE", "/memoir/edits/1", key=ADMIN)[0] == 200
    with pytest.raises(LockedError):
        Memoir.open(tiny_llama, tiny_tokenizer, folder)
    with ThreadPoolExecutor(4) as many:
        sent = [many.submit(teach, number) for number in range(3, 11)]
        acknowledged = {first[0], first[2], sent[0].result()}  # others are being learned, or wait
        os.kill(child, signal.SIGKILL)
        acknowledged |= {one.result() for one in sent} - {None}
    assert ended(child) == -signal.SIGKILL and first[0] and sent[0].result()
    with Memoir.open(tiny_llama, tiny_tokenizer, folder) as memoir:
        found = {one.prompt for one in memoir.edits.values()}
        assert acknowledged <= found <= acknowledged | {f"The number {number} is" for number in range(3, 11)}
        assert first[1] not in found


def test_a_server_ends_on_a_signal_and_lets_the_folder_go(process, connect, folder, tiny_llama, tiny_tokenizer):
    child, port = process
    assert connect(port)("GET", "/v1/models")[1]["data"][0]["id"] == "tiny"
    os.kill(child, signal.SIGINT)
    assert ended(child) == 0
    Memoir.open(tiny_llama, tiny_tokenizer, folder).close()


@pytest.fixture
def impatient(monkeypatch):
    """Servers leave answers under way almost no time."""
    monkeypatch.setattr("memoir_fast.cli.commands.serve.GRACE", 0.1)


def test_an_answer_that_outlasts_the_end_is_told_so(impatient, process, connect):
    child, port = process
    body = {"prompt": "The capital of France is", "max_tokens": 240, "stream": False}
    body["generation_config"] = json.dumps({"eos_token_id": None})
    with ThreadPoolExecutor(8) as many:
        asked = [many.submit(connect(port), "POST", "/v1/completions", body) for _ in range(8)]
        time.sleep(0.3)
        os.kill(child, signal.SIGINT)
        answers = [one.result() for one in asked]
    assert ended(child) == 0
    refused = [said["error"]["message"] for status, said, _ in answers if status != 200]
    assert refused == ["the server is ending"] * len(refused) != []


def test_a_list_of_edits_ends_with_the_edit_in_hand_and_says_which_were_made(
    impatient, process, connect, folder, tiny_llama, tiny_tokenizer
):
    child, port = process
    edits = [{"prompt": f"The number {number} is", "target": "Rome"} for number in range(400)]
    with ThreadPoolExecutor(2) as many:
        asked = many.submit(connect(port), "POST", "/memoir/edits", edits, ADMIN)
        while not connect(port)("GET", "/memoir/status", key=ADMIN)[1]["edits"]:
            assert not asked.done()
        waiting = many.submit(connect(port), "POST", "/memoir/edits", edits[-1], ADMIN)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        status, said, _ = asked.result()
        assert waiting.result()[0] == 503
    assert ended(child) == 0
    made = [one["prompt"] for one in said["edits"]]
    assert status == 503 and said["error"]["message"] == f"the server is ending; of 400 edits {len(made)} were made"
    assert 0 < len(made) < len(edits) and made == [one["prompt"] for one in edits[: len(made)]]
    with Memoir.open(tiny_llama, tiny_tokenizer, folder) as memoir:
        assert [one.prompt for one in memoir.edits.values()] == made


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keys", "none.json"], "none.json"),
        (["--admin-token", "short"], "short: the admin token must have 16 or more characters"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1, port 0: Cannot assign requested address"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_model_is_loaded(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("short")
    done = CliRunner().invoke(app, ["serve", "-m", "no/model", "--memory", "memory", "--port", "0", *options])
    assert done.exit_code == 1 and said in done.stderr
