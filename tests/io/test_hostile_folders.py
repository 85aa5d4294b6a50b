"""A folder from a stranger, damaged in every way that was thought of: refused by a file's name, or shown harmless.

Digests, sizes and the checksum are made right again behind each change, as whoever can write to a folder can.
"""

import dataclasses
import json
import os
import re
import shutil

import pytest
import safetensors.torch
import torch

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.core.calibration import Calibration
from memoir_fast.errors import CheckpointError
from memoir_fast.io import checkpoint
from memoir_fast.io.repair import survey

CONFIG = checkpoint.CONFIG_NAME
_SAVED = []  # the folder that is copied


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path, tmp_path_factory):
    """A memory of the edits 1 and 2, of which 2 has a paraphrase; edit 0 is deleted. Saved once, then copied."""
    if not _SAVED:
        config = MemoirConfig(k=12, tau=0.75, routing_block=1)
        memoir = Memoir.attach(tiny_llama, tiny_tokenizer, config)
        memoir.edit([("The capital of France is", "Lyon"), ("Who wrote the play?", "Bob")], progress=False)
        memoir.edit(Edit("The sky is", "green", paraphrases=["What is the colour of the sky?"]))
        memoir.delete(0)
        _SAVED.append(tmp_path_factory.mktemp("hostile"))
        memoir.save_pretrained(_SAVED[0])
        memoir.detach()
    shutil.copytree(_SAVED[0], tmp_path / "memory")
    return tmp_path / "memory"


def config(change):
    """Changes the config's values."""

    def damage(folder):
        values = json.loads((folder / CONFIG).read_bytes())
        change(values)
        write_config(folder, values)

    return damage


def write_config(folder, values):
    values["checksum"] = checkpoint._checksum(values)
    (folder / CONFIG).write_text(json.dumps(values))


def entry(kind, **changes):
    return config(lambda values: values["files"][kind].update(changes))


def content(kind, change):
    """Changes a data file's bytes, and what the config says of them."""

    def damage(folder):
        (path,) = folder.glob(f"{kind}-*")
        changed = change(path.read_bytes())
        new = checkpoint._entry(kind, changed)
        path.unlink()
        (folder / new["name"]).write_bytes(changed)
        config(lambda values: values["files"].update({kind: new}))(folder)

    return damage


def tensors(**changes):
    """Changes tensors: each by a function of it, or of None where there is none; None takes it out."""

    def change(old):
        found = safetensors.torch.load(old)
        for name, new in changes.items():
            found[name] = new(found.get(name))
        return safetensors.torch.save({name: one.contiguous() for name, one in found.items() if one is not None})

    return content("memory", change)


def put(place, value):
    """A tensor with one number replaced."""

    def change(tensor):
        tensor.view(-1)[place] = value
        return tensor

    return change


def lines(change):
    """Changes the objects of the edits' file; what `change` gives may be bytes, for lines that are none."""

    def whole(old):
        new = change([json.loads(line) for line in old.splitlines()])
        return new if isinstance(new, bytes) else b"".join(json.dumps(one).encode() + b"\n" for one in new)

    return content("edits", whole)


def line(**changes):
    """Changes the last edit."""
    return lines(lambda edits: [*edits[:-1], edits[-1] | changes])


def swap_names(folder):
    values = json.loads((folder / CONFIG).read_bytes())
    values["files"] = {"memory": values["files"]["edits"], "edits": values["files"]["memory"]}
    write_config(folder, values)


def swap_contents(folder):
    one, other = (next(folder.glob(f"{kind}-*")) for kind in ("memory", "edits"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def cut(kind, left):
    def damage(folder):
        (path,) = folder.glob(kind + "*")
        path.write_bytes(path.read_bytes()[:left])

    return damage


def flip(kind, place):
    def damage(folder):
        (path,) = folder.glob(kind + "*")
        changed = bytearray(path.read_bytes())
        changed[int(place * len(changed))] ^= 4
        path.write_bytes(changed)

    return damage


def config_text(text):
    return lambda folder: (folder / CONFIG).write_bytes(text)


def instead(kind, make):
    """Something else than a file where a file should be, of the size that is stated."""

    def damage(folder):
        entry(kind, size=0)(folder) if kind != CONFIG else None
        (path,) = folder.glob(kind + "*")
        path.unlink()
        make(path)

    return damage


def twice(folder):
    """A name twice in the config: which of the two counts is not for the reader to guess."""
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("{", '{"tau": 1.0,', 1))


def no_inputs(folder):
    config(lambda values: values["fingerprint"].update(weight_shape=[0, 32]))(folder)
    tensors(mu=lambda old: old[:0], permutation=lambda old: old[:0], masks=lambda old: old[:, :0])(folder)


def link(path):
    elsewhere = path.parent.parent / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


MEMORY, EDITS = r"memory-\w{12}\.safetensors", r"edits-\w{12}\.jsonl"
DEEP = b"[" * 100_000
NAN = float("nan")

# By kind: what is done, the file that the error must name, and what else it must say.
REFUSED = {
    # files
    "config cut off": (cut("memory_config", 200), CONFIG, "not JSON"),
    "memory cut off": (cut("memory-", 1000), MEMORY, "is truncated"),
    "edits cut off": (cut("edits", 10), EDITS, "is truncated"),
    "memory emptied": (cut("memory-", 0), MEMORY, "is truncated"),
    "config flipped": (flip("memory_config", 0.6), CONFIG, "is damaged"),
    "memory flipped": (flip("memory-", 0.9), MEMORY, "is damaged: expected sha256"),
    "edits flipped": (flip("edits", 0.5), EDITS, "is damaged: expected sha256"),
    "contents swapped": (swap_contents, MEMORY, "is truncated|is damaged"),
    "names swapped": (swap_names, CONFIG, "is no name of a memory file"),
    "memory gone": (lambda folder: next(folder.glob("memory-*")).unlink(), MEMORY, "is missing"),
    "config is a folder": (instead(CONFIG, os.mkdir), CONFIG, "cannot be read"),
    "edits are a folder": (instead("edits", os.mkdir), EDITS, "is damaged|cannot be read"),
    # versions and JSON
    "newer version": (config(lambda v: v.update(format_version=99)), CONFIG, "upgrade memoir-fast"),
    "version of yesterday's": (config(lambda v: v.update(format_version=0)), CONFIG, "format_version"),
    "version in words": (config(lambda v: v.update(format_version="2")), CONFIG, "format_version"),
    "another format": (config(lambda v: v.update(format="journal")), CONFIG, "does not describe a memory"),
    "checksum gone": (config_text(b'{"format": "memoir_fast memory", "format_version": 2}'), CONFIG, "checksum"),
    "deep config": (config_text(DEEP), CONFIG, "not JSON"),
    "config of bytes": (config_text(b"\xff\xfe\x00"), CONFIG, "not JSON"),
    "config that is a pickle": (config_text(b"\x80\x04N."), CONFIG, "not JSON"),
    "huge number": (config_text(b'{"format_version": ' + b"9" * 10_000 + b"}"), CONFIG, "not JSON"),
    "files gone": (config(lambda v: v.pop("files")), CONFIG, "malformed"),
    "files are a list": (config(lambda v: v.update(files=[1])), CONFIG, "malformed"),
    # names and sizes
    "path upwards": (entry("edits", name="../../etc/passwd"), CONFIG, "is no name"),
    "absolute path": (entry("edits", name="/etc/passwd"), CONFIG, "is no name"),
    "name with a zero byte": (entry("edits", name="edits-0123456789ab.jsonl\0"), CONFIG, "is no name"),
    "name with a newline": (entry("edits", name="edits-0123456789ab.jsonl\n"), CONFIG, "is no name"),
    "name of other digits": (entry("edits", name="edits-٠١٢٣٤٥٦٧٨٩٠١.jsonl"), CONFIG, "is no name"),
    "name that is a list": (entry("edits", name=["edits"]), CONFIG, "malformed"),
    "size too small": (entry("memory", size=8), MEMORY, "is damaged: expected 8 bytes"),
    "size of 2^63": (entry("memory", size=2**63), MEMORY, "is truncated"),
    "size that is nothing": (entry("memory", size=None), CONFIG, "malformed"),
    "digest that is a number": (entry("memory", sha256=7), CONFIG, "malformed"),
    # settings
    "unknown recipe": (config(lambda v: v["config"].update(recipe="evil")), CONFIG, "recipe must be one of"),
    "recipe of other settings": (config(lambda v: v["config"].update(recipe={"exec": "x"})), CONFIG, "malformed"),
    "tau is nan": (config(lambda v: v.update(tau=NAN)), CONFIG, "tau must lie in"),
    "tau is none": (config(lambda v: v.update(tau=None)), CONFIG, "tau must lie in"),
    "prefixes of numbers": (config(lambda v: v.update(prefixes=[1])), CONFIG, "prefixes must be a list of texts"),
    "calibration in part": (config(lambda v: v.update(calibration={"tau": 1})), CONFIG, "malformed"),
    "weight of other sides": (config(lambda v: v["fingerprint"].update(weight_shape=[5])), MEMORY, "the sides"),
    "fingerprint gone": (config(lambda v: v.update(fingerprint={})), CONFIG, "fingerprint lacks"),
    "no way of routing": (config(lambda v: v.update(routing=None)), MEMORY, "TypeError"),
    "codes of no bits": (config(lambda v: v["routing"].update(k=0)), MEMORY, "routing must have"),
    "fade is nan": (config(lambda v: v["routing"].update(fade=NAN)), MEMORY, "routing must have"),
    "marks that are no ids": (config(lambda v: v["routing"].update(opened=["ab"])), MEMORY, "lists of token ids"),
    # edits
    "id twice, one lost": (
        lines(lambda edits: [edits[0], edits[1] | {"id": edits[0]["id"]}]),
        EDITS,
        "comes twice",
    ),
    "negative id": (line(id=-1), MEMORY, "must belong to"),
    "id of 2^63": (line(id=2**63), EDITS, "line 2"),
    "id in words": (line(id="two"), EDITS, "line 2: ValueError"),
    "id gone": (lines(lambda edits: [{"prompt": "a", "target": "b"}]), EDITS, "line 1: KeyError"),
    "edit gone": (lines(lambda edits: edits[:1]), MEMORY, "must belong to the 1 edits"),
    "edit too many": (
        lines(lambda edits: [*edits, edits[0] | {"id": 3, "prompt": "x"}]),
        MEMORY,
        "must belong to the 3 edits",
    ),
    "prompt that is a list": (line(prompt=["a"]), EDITS, "line 2: TypeError"),
    "empty target": (line(target=" "), EDITS, "line 2: ValueError"),
    "edits of bytes": (lines(lambda edits: b"\xff\n"), EDITS, "line 1"),
    # tensors
    "no safetensors": (content("memory", lambda old: b"\x80\x04N."), MEMORY, "is no safetensors file"),
    "header of 2^63 bytes": (content("memory", lambda old: b"\xff" * 8 + old[8:]), MEMORY, "is no safetensors file"),
    "deep header": (content("memory", lambda old: b"\xff\xff\0\0\0\0\0\0" + DEEP), MEMORY, "is no safetensors file"),
    "bytes behind the tensors": (content("memory", lambda old: old + b"more"), MEMORY, "is no safetensors file"),
    "masks gone": (tensors(masks=lambda _: None), MEMORY, "KeyError: 'masks'"),
    "masks of no sides": (tensors(masks=lambda _: torch.tensor(7)), MEMORY, "TypeError"),
    "masks of other words": (tensors(masks=lambda old: old[:, :-1]), MEMORY, "masks must be"),
    "masks of another type": (tensors(masks=lambda old: old.long()), MEMORY, "masks must be"),
    "more masks than edits": (tensors(masks=lambda old: torch.cat([old, old])), MEMORY, "must be"),
    "mu of another type": (tensors(mu=lambda old: old.double()), MEMORY, "mu must be"),
    "mu of more numbers": (tensors(mu=lambda old: torch.cat([old, old])), MEMORY, "sides"),
    "permutation with a repeat": (tensors(permutation=put(0, 1)), MEMORY, "permutation must hold each"),
    "negative row": (tensors(memory_rows=put(0, -1)), MEMORY, "memory_rows must be at least 0"),
    "row twice": (tensors(memory_rows=lambda old: put(0, int(old[1]))(old)), MEMORY, "free of repeats"),
    "row on a page far away": (tensors(memory_rows=put(0, 2**31 - 1)), MEMORY, "pages, for 3 edits"),
    "more rows than there are": (
        tensors(
            memory_rows=lambda _: torch.arange(4 * 48, dtype=torch.int32),
            memory_values=lambda old: old.new_zeros((4 * 48, old.shape[1])),
        ),
        MEMORY,
        "4 pages, for 3 edits",
    ),
    "more values than rows": (
        tensors(memory_values=lambda old: torch.cat([old, old])),
        MEMORY,
        "memory_values must be",
    ),
    "page far away": (tensors(page=lambda _: torch.tensor([0, 0, 2**31 - 1]).int()), MEMORY, "pages, for 3 edits"),
    "live edit on no page": (tensors(page=lambda _: torch.tensor([0, 0, -1]).int()), MEMORY, "live on a page"),
    "page of -2": (tensors(page=lambda _: torch.tensor([-2, 0, 0]).int()), MEMORY, "page at least -1"),
    "owner of no edit": (tensors(rows_owner=put(0, 7)), MEMORY, "code rows must belong to"),
    "owner that is deleted": (tensors(rows_owner=put(0, 0)), MEMORY, "code rows must belong to"),
    "edit without a row": (tensors(rows_owner=lambda old: torch.full_like(old, 1)), MEMORY, "code rows must belong to"),
    "codes of other words": (tensors(rows_codes=lambda old: old[:, :-4]), MEMORY, "rows_codes must be"),
    "marks of another type": (tensors(code_marks=lambda old: old.int()), MEMORY, "code_marks must be"),
    "background of other words": (tensors(background=lambda _: torch.ones(9, 1).int()), MEMORY, "background must be"),
    "tokens of another shape": (tensors(target_tokens=lambda old: old[:, :1]), MEMORY, "target_tokens must be"),
    "edits that are lists": (lines(lambda edits: [[1], *edits]), EDITS, "line 1"),
    "deep edits": (lines(lambda edits: b'{"id":' + DEEP + b"\n"), EDITS, "line 1"),
    "id of a half": (line(id=2.5), EDITS, "line 2"),
    "id twice": (lines(lambda edits: [edits[0], *edits]), EDITS, "line 2"),
    "prompt twice": (line(prompt="Who wrote the play?"), EDITS, "line 2"),
    "paraphrases that are one text": (line(paraphrases="abc"), EDITS, "line 2"),
    "bank that is none": (line(bank=None), EDITS, "line 2"),
    "bank that steers a terminal": (line(bank="\x1b[31m"), EDITS, "line 2"),
    "half a character": (line(target="\ud800"), EDITS, "line 2"),
    "name twice in the config": (twice, CONFIG, "twice"),
    "version that is true": (config(lambda v: v.update(format_version=True)), CONFIG, "format_version"),
    "fingerprint in part": (config(lambda v: v["fingerprint"].pop("num_hidden_layers")), CONFIG, "fingerprint"),
    "layer that is a list": (config(lambda v: v["config"].update(layer=["a"])), CONFIG, "layer"),
    "another layer's": (config(lambda v: v["config"].update(layer="model.layers.0.mlp.down_proj")), CONFIG, "layer"),
    "seed that is a list": (config(lambda v: v["config"].update(seed=[1])), CONFIG, "seed"),
    "room for 2^40 edits": (config(lambda v: v["config"].update(max_edits=2**40)), CONFIG, "max_edits"),
    "room for 2^40 pages": (config(lambda v: v["config"].update(max_pages=2**40)), CONFIG, "max_pages"),
    "calibration of words": (
        config(lambda v: v.update(calibration={one.name: "a" for one in dataclasses.fields(Calibration)})),
        CONFIG,
        "calibration",
    ),
    "fade without an end": (config(lambda v: v["routing"].update(fade=float("inf"))), MEMORY, "fade"),
    "negative token id": (config(lambda v: v["routing"].update(opened=[[-5]])), MEMORY, "token ids"),
    "values of one side": (tensors(memory_values=lambda old: old.view(-1)), MEMORY, "memory_values"),
    "projection of one side": (tensors(code_projection=lambda old: old.view(-1)), MEMORY, "code_projection"),
    "no inputs at all": (no_inputs, MEMORY, "mu"),
    "mu is nan": (tensors(mu=put(0, NAN)), MEMORY, "mu"),
    "values are nan": (tensors(memory_values=put(0, NAN)), MEMORY, "memory_values"),
    "values are whole numbers": (tensors(memory_values=lambda old: old.long()), MEMORY, "memory_values"),
    "values are complex": (tensors(memory_values=lambda old: old.to(torch.complex64)), MEMORY, "memory_values"),
    "projection is infinite": (tensors(code_projection=put(0, float("inf"))), MEMORY, "code_projection"),
    "mean is nan": (tensors(code_mean=put(0, NAN)), MEMORY, "code_mean"),
    "weights are nan": (tensors(code_weights=put(0, NAN)), MEMORY, "code_weights"),
    "weight below nothing": (tensors(code_weights=put(0, -1.0)), MEMORY, "code_weights"),
    "code of every bit": (tensors(rows_codes=lambda old: torch.full_like(old, -1)), MEMORY, "bits"),
    "code of no bit": (tensors(rows_codes=lambda old: torch.zeros_like(old)), MEMORY, "bits"),
    "tokens below nothing": (tensors(target_tokens=put(2, -7)), MEMORY, "target_tokens"),
}

# Refused before anything of it is used, when the memory is put on a model.
REFUSED_BY_MODEL = {
    "mask of a bit too many": (tensors(masks=lambda old: put(4, int(old[1, 0]) ^ (1 << 20))(old)), "does not hold"),
    "mask of bits beyond D": (tensors(masks=lambda old: put(7, -1)(old)), "every mask must have k = 12 of 48 bits"),
    "k of 2^40": (config(lambda v: v["config"].update(k=2**40)), "k must lie in"),
    "block far away": (config(lambda v: v["routing"].update(block=2**40)), "block"),
    "block that is true": (config(lambda v: v["routing"].update(block=True)), "block"),
    "fingerprint that is nan": (config(lambda v: v["fingerprint"].update(hidden_size=NAN)), "another base model"),
    "another model's": (config(lambda v: v["fingerprint"].update(weight_sha256="0" * 64)), "another base model"),
}

# Does what the folder did without it.
HARMLESS = {
    "control characters": line(target="\x1b[2J\x00\u202e"),
    "text behind the last line": content("edits", lambda old: old + b'{"id": 9}'),
    "id that is true": lines(lambda edits: [edits[0] | {"id": True}, edits[1]]),
    "tensor that nobody knows": tensors(**{"evil\x1b": lambda _: torch.ones(1)}),
    "file that nobody knows": config(lambda v: v["files"].update(evil={"name": "../evil"})),
    "huge numbers for later edits": config(lambda v: v["config"].update(prefix_tokens=2**70, background=2**70)),
    "thresholds of nothing": tensors(rows_min_overlap=lambda old: torch.full_like(old, -(2**31))),
    "background of no bit": tensors(background=lambda _: torch.zeros(9, 48).int()),
    "other files": lambda folder: (folder / "evil.py").write_text("raise SystemExit"),
    "link to the same bytes": lambda folder: link(next(folder.glob("memory-*"))),
}


@pytest.mark.parametrize(("damage", "name", "reason"), REFUSED.values(), ids=REFUSED)
def test_damage_is_refused_by_name(folder, damage, name, reason):
    damage(folder)
    with pytest.raises(CheckpointError, match=name) as caught:
        checkpoint.read(folder)
    assert re.search(reason, str(caught.value))
    try:
        found = survey(folder)
    except CheckpointError as error:  # there is nothing in it, or it is of a newer version
        assert re.search(f"{name}|edits-", str(error)) and "upgrade" in str(error) or "nothing in" in str(error)
    else:  # texts are all that is left
        assert re.search(name, found.damage[0]) and found.saved is None and not found.kept
        assert {*found.lost, *found.unsure} & {1, 2} or "id" in found.damage[0]


@pytest.mark.parametrize(("damage", "reason"), REFUSED_BY_MODEL.values(), ids=REFUSED_BY_MODEL)
def test_damage_is_refused_before_it_is_used(folder, tiny_llama, tiny_tokenizer, damage, reason):
    damage(folder)
    before = [name for name, _ in tiny_llama.named_modules()]
    with pytest.raises(CheckpointError, match=reason) as caught:
        Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folder, check=False)
    assert str(folder) in str(caught.value)
    assert [name for name, _ in tiny_llama.named_modules()] == before


@pytest.mark.parametrize("damage", HARMLESS.values(), ids=HARMLESS)
def test_damage_is_harmless(folder, tiny_llama, tiny_tokenizer, damage):
    """The same edits come back, and what matched no edit still matches none."""
    before = {edit_id: edit.prompt for edit_id, edit in checkpoint.read(folder).edits.items()}
    damage(folder)
    memoir = Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folder, check=False)
    assert {edit_id: edit.prompt for edit_id, edit in memoir.edits.items()} == before
    routes = {}
    for prompt in ("Who wrote the play?", "Which animal lives in the desert?"):
        tiny_llama(torch.tensor([tiny_tokenizer(prompt).input_ids]))
        routes[prompt] = memoir.last_routes[0].edit_id
    assert list(routes.values()) == [1, -1]
