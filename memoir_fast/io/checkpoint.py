"""A memory's files on disk: saved so that nothing is lost, loaded only where everything is as it was saved.

A folder holds `memory_config.json` (settings, fingerprint of the base model, names and digests of the other two),
`memory-<digest>.safetensors` (permutation, mu, masks, the rows of W_m that are not zero) and `edits-<digest>.jsonl`
(the edits' texts, one JSON object per live edit).
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from memoir_fast import __version__
from memoir_fast.atomic import leftover, locked, publish
from memoir_fast.config import MemoirConfig
from memoir_fast.core.calibration import Calibration
from memoir_fast.core.edit import Edit
from memoir_fast.core.edited_model import EditedModel
from memoir_fast.errors import CheckpointError, NewerVersionError
from memoir_fast.hf.presets import device_of
from memoir_fast.io import codes, pages, reads
from memoir_fast.io.edit_texts import read_edits, texts_of
from memoir_fast.io.files import open_file, read_file
from memoir_fast.io.fingerprint import fingerprint
from memoir_fast.io.folders import CONFIG_NAME, local, named
from memoir_fast.io.history import HISTORY_NAME
from memoir_fast.io.journal import JOURNAL_NAMES
from memoir_fast.io.plausible import (
    calibration_in,
    layers_in,
    require_bits,
    require_numbers,
    require_settings,
    texts_in,
    threshold_in,
)
from memoir_fast.io.tensor_file import Parts, TensorFile
from memoir_fast.mask_format import words
from memoir_fast.modules.routing_code import RoutingCode

FORMAT = "memoir_fast memory"
FORMAT_VERSION = 7
# what is written of a memory that is no more, for older releases
_WITHOUT_SUBJECTS, _WITHOUT_KEPT, _ONE_LAYER, _WITHOUT_BANKS = 6, 5, 4, 3

_DATA_NAMES = {"memory": r"memory-[0-9a-f]{12}\.safetensors", "edits": r"edits-[0-9a-f]{12}\.jsonl"}
_ALL_NAMES = [*_DATA_NAMES.values(), JOURNAL_NAMES]  # the journal of an earlier snapshot goes with it
_LEFT = (*_ALL_NAMES, *map(re.escape, (CONFIG_NAME, HISTORY_NAME)))  # what a crash may leave a part of
LEFTOVERS = re.compile("|".join(map(leftover, _LEFT)))
"""Names of what a crash may leave in a memory's folder."""
_OWNED = re.compile("|".join([*_ALL_NAMES, LEFTOVERS.pattern]))
_KEYS = {
    "format",
    "format_version",
    "package_version",
    "config",
    "tau",
    "prefixes",
    "calibration",
    "routing",
    "fingerprint",
    "files",
    "checksum",
}
_PIECE = 1 << 22  # bytes of a file that are read at a time
_LONGEST_CONFIG = 1 << 26  # bytes


@dataclass(frozen=True)
class SavedMemory:
    """What a folder holds, verified; no model is needed to read it."""

    folder: Path
    package_version: str
    config: MemoirConfig
    tau: float
    prefixes: list[str]
    calibration: Calibration | None
    fingerprint: dict[str, Any]
    edits: dict[int, Edit]
    tensors: dict[str, torch.Tensor]
    """permutation int32 [D], mu float32 [D], masks int32 [N, W], those of `io.pages.tensors`; where tau was chosen by
    calibration, background int32 [M, W]; where an edit's threshold is not tau's, min_overlap int32 [N]; where the
    memory rests, target_tokens int32 [N, 2]; where it routes by codes, those that `io.codes.tensors` names; and what
    `io.reads.tensors` names."""
    sizes: dict[str, int]
    """Bytes of each file, by its name."""
    routing: dict[str, Any] | None = None
    """What a routing code has besides its tensors; None where masks route."""
    checksum: str = ""
    """Of the settings, which name the other files by their content."""


def save(
    memoir: EditedModel,
    folder: str | os.PathLike,
    while_writing: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> str:
    """Writes a memory to `folder`, in place of the one that is there. A crash at any moment leaves one of the two.

    Of processes that share the model, all call it, and the first one writes; `while_writing()` is in force meanwhile.

    Returns:
        str: the checksum of its settings, which names it.

    Raises:
        CheckpointError: the folder cannot be written, or there is no room; what it held is as before.
    """
    path = named(folder)
    store = memoir.layer.store
    tensors: dict[str, torch.Tensor | Parts] = {
        "permutation": memoir.layer.permutation,
        "mu": memoir.layer.mu,
        "masks": store.masks[: len(store)],
        **pages.tensors(memoir.layer),
    }
    least = store.min_overlap[: len(store)]
    if memoir.layer.codes is None and bool((least != memoir.layer.min_overlap).any()):
        tensors["min_overlap"] = least
    if store.rests:
        tensors["target_tokens"] = store.target_tokens[: len(store)]
    tensors |= codes.tensors(memoir.layer) | reads.tensors(memoir)
    if memoir.background is not None:
        tensors["background"] = memoir.background
    contents: dict[str, Iterable[bytes | memoryview]] = {
        "memory": TensorFile(tensors),
        "edits": [
            json.dumps({"id": edit_id, **texts_of(edit)}, ensure_ascii=False).encode() + b"\n"
            for edit_id, edit in sorted(memoir.edits.items())
        ],
    }
    files = {kind: _entry(kind, content) for kind, content in contents.items()}
    values = {
        "format": FORMAT,
        "format_version": _version(memoir),
        "package_version": __version__,
        "config": memoir.config.to_dict(),
        "tau": float(memoir.tau),
        "prefixes": memoir.prefixes,
        "calibration": memoir.calibration and memoir.calibration.to_dict(),
        "routing": codes.values(memoir.layer),
        "fingerprint": fingerprint(memoir.model, memoir.names[0], memoir.names[1:]),
        "files": files,
    }
    values["checksum"] = _checksum(values)
    data = {str(files[kind]["name"]): content for kind, content in contents.items()}
    index = json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"

    def write() -> None:
        try:
            with while_writing():
                publish(path, data, CONFIG_NAME, index, _OWNED)
        except OSError as error:
            raise CheckpointError(f"the memory cannot be saved to {path}: {error}") from error

    part = memoir.layer.part
    write() if part is None else part.once(write)
    return str(values["checksum"])


def _version(memoir: EditedModel) -> int:
    """The oldest format that says all of a memory: releases that know no newer one refuse what they would not serve."""
    if any(edit.subject for edit in memoir.edits.values()):
        return FORMAT_VERSION
    if memoir.layer.codes is not None and memoir.layer.codes.keeps:
        return _WITHOUT_SUBJECTS
    if memoir.layer.further:
        return _WITHOUT_KEPT
    return _ONE_LAYER if any(edit.bank for edit in memoir.edits.values()) else _WITHOUT_BANKS


def checksum_of(folder: str | os.PathLike) -> str:
    """The checksum of the settings of the memory that a local folder holds now; CheckpointError as `read`."""
    return str(_read_config(Path(folder) / CONFIG_NAME)["checksum"])


def read(folder: str | os.PathLike, **hub: Any) -> SavedMemory:
    """Reads and verifies a saved memory.

    Args:
        folder: a local folder, or, where there is none of that name, a hub id.
        **hub: options of `huggingface_hub.snapshot_download`, e.g. revision or token.

    Raises:
        CheckpointError: a file is missing, damaged, or written by a newer version; the message names it.
    """
    path = local(folder, hub)
    try:
        with locked(path, shared=True):
            values = _read_config(path / CONFIG_NAME)
            entries = {kind: values["files"][kind] for kind in _DATA_NAMES}
            files = {kind: _verified(path, kind, entry) for kind, entry in entries.items()}
            tensors, edits = _parse_tensors(files["memory"]), read_edits(files["edits"])
        require_settings(values)
        saved = SavedMemory(
            folder=path,
            package_version=str(values["package_version"]),
            config=MemoirConfig.from_dict({"routing": "paper", **values["config"]}),  # version 1 knew no other
            tau=threshold_in(values["tau"]),
            prefixes=texts_in(values["prefixes"]),
            calibration=calibration_in(values.get("calibration")),
            fingerprint=dict(values["fingerprint"]),
            edits=edits,
            tensors=tensors,
            sizes={entry["name"]: entry["size"] for entry in entries.values()},
            routing=values.get("routing"),
            checksum=str(values["checksum"]),
        )
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path / CONFIG_NAME} is malformed: {type(error).__name__}: {error}") from error
    _require_consistent(saved, path / entries["memory"]["name"])
    return saved


def _entry(kind: str, content: Iterable[bytes | memoryview] | bytes) -> dict[str, str | int]:
    found, size = hashlib.sha256(), 0
    for piece in [content] if isinstance(content, bytes) else content:
        found.update(piece)
        size += len(piece)
    digest, suffix = found.hexdigest(), {"memory": "safetensors", "edits": "jsonl"}[kind]
    return {"name": f"{kind}-{digest[:12]}.{suffix}", "sha256": digest, "size": size}


def _checksum(values: dict[str, Any]) -> str:
    """Digest of the config file's values, however they are laid out."""
    rest = {name: value for name, value in values.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_file(path, _LONGEST_CONFIG), object_pairs_hook=_names_once)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} holds no memory: {CONFIG_NAME} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not describe a memory: format must be {FORMAT!r}")
    version = values.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path} is damaged: format_version must be a whole number, got {version!r}")
    if version > FORMAT_VERSION:
        raise NewerVersionError(
            f"{path} has format version {version}, this memoir_fast {__version__} reads up to {FORMAT_VERSION}; "
            f"it was written by {values.get('package_version')}: upgrade memoir-fast"
        )
    if values.get("checksum") != _checksum(values):
        raise CheckpointError(f"{path} is damaged: its checksum does not match its contents")
    unknown = sorted(set(values) - _KEYS)
    if unknown:
        warnings.warn(f"{path} has keys that this version does not know: {', '.join(unknown)}", stacklevel=4)
    return values


def _names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"an object has a name twice, of {', '.join(sorted(values))}")
    return values


def _verified(folder: Path, kind: str, entry: dict[str, Any]) -> Path:
    """A data file, of the size and the digest that the config names; it is read in pieces."""
    if not re.fullmatch(_DATA_NAMES[kind], entry["name"]):
        raise ValueError(f"{entry['name']!r} is no name of a {kind} file")
    path = folder / entry["name"]
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry["size"]:
                how = "truncated" if size < entry["size"] else "damaged"
                raise CheckpointError(f"{path} is {how}: expected {entry['size']} bytes, got {size}")
            found = hashlib.sha256()
            while piece := file.read(_PIECE):
                found.update(piece)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    digest = found.hexdigest()
    if digest != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: expected sha256 {entry['sha256'][:12]}..., got {digest[:12]}...")
    return path


def _parse_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, where they lie: what is not looked at is not read."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error


def _require_consistent(saved: SavedMemory, path: Path) -> None:
    """Shapes, types and ranges of the tensors, and that every live mask has its text."""
    try:
        require_numbers(saved.tensors)
        width, outputs = layers_in(saved.tensors, saved.fingerprint)
        count = len(saved.tensors["masks"])
        rows = saved.tensors["memory_rows"]
        expected: dict[str, tuple[torch.dtype | None, tuple[int, ...]]] = {
            "permutation": (torch.int32, (width,)),
            "mu": (torch.float32, (width,)),
            "masks": (torch.int32, (count, words(width))),
            "memory_rows": (torch.int32, (len(rows),)),
            "memory_values": (None, (len(rows), outputs)),
        }
        if "min_overlap" in saved.tensors:
            expected["min_overlap"] = (torch.int32, (count,))
        if "target_tokens" in saved.tensors:
            expected["target_tokens"] = (torch.int32, (count, 2))
        if "page" in saved.tensors:
            expected["page"] = (torch.int32, (count,))
        searched = width
        if saved.config.routing == "early":
            searched = codes.require_consistent(saved.tensors, saved.routing, saved.edits)
            assert saved.routing is not None
            codes.require_bits(saved.tensors["rows_codes"], saved.tensors["rows_room"], searched, saved.routing["k"])
        if "background" in saved.tensors:
            expected["background"] = (torch.int32, (len(saved.tensors["background"]), words(searched)))
        for name, (dtype, shape) in expected.items():
            tensor = saved.tensors[name]
            if tensor.shape != shape or dtype not in (None, tensor.dtype):
                raise ValueError(f"{name} must be {dtype or 'float'} {list(shape)}, got {tensor.dtype} {tensor.shape}")
        if not torch.equal(saved.tensors["permutation"].sort().values, torch.arange(width, dtype=torch.int32)):
            raise ValueError(f"permutation must hold each of 0 .. {width - 1} once")
        pages.require_consistent(saved.tensors, width, saved.config.max_pages)
        reads.require_consistent(saved.tensors, saved.edits)
        live = saved.tensors["masks"].any(dim=1).nonzero().flatten().tolist()
        if live != sorted(saved.edits):
            raise ValueError(f"{len(live)} masks are live, {len(saved.edits)} edits have texts, or their ids differ")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold a memory: {type(error).__name__}: {error}") from error


def routing_code(saved: SavedMemory, model: nn.Module) -> RoutingCode | None:
    """How a saved memory makes its routing codes; None where masks route."""
    if saved.config.routing != "early" or saved.routing is None:
        return None
    return codes.read_code(saved.tensors, saved.routing, device_of(model))


def fill(memoir: EditedModel, saved: SavedMemory) -> None:
    """Gives an empty memory, of the saved settings and routing code, what was saved.

    CheckpointError where masks, or what edits read, are of another k than the layer's.
    """
    layer = memoir.layer
    tensors, device = saved.tensors, layer.memory.table.device
    layer.permutation.copy_(tensors["permutation"])
    layer.mu.copy_(tensors["mu"])
    layer.tau = saved.tau
    try:
        require_bits(tensors["masks"], layer.in_features, layer.k)
        read = reads.read(tensors, layer)
    except ValueError as error:
        raise CheckpointError(f"{saved.folder} does not hold a memory: {error}") from error
    layer.store.restore(tensors["masks"], tensors.get("min_overlap"), tensors.get("page", 0))
    if "target_tokens" in tensors:
        layer.store.target_tokens[: len(layer.store)] = tensors["target_tokens"].to(device)
        layer.store.rests = True
    codes.fill(layer, tensors)
    pages.fill(layer, tensors)
    memoir.prefixes = list(saved.prefixes)
    memoir.calibration = saved.calibration
    if "background" in tensors:
        memoir.background = tensors["background"].to(device)
    memoir.edits.restore(saved.edits)
    memoir.edits.reads = read
