"""A journal whose digests are right and whose records fit no memory: refused, and the model is left as it was."""

import dataclasses
import shutil

import pytest
import torch

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.core.calibration import Calibration
from memoir_fast.errors import CheckpointError, NewerVersionError
from memoir_fast.io import checkpoint
from memoir_fast.io.durable import current_edits
from memoir_fast.io.journal import Journal, journal_path, read
from memoir_fast.io.repair import survey
from memoir_fast.io.writer_lock import WriterLock

_MADE = []  # the folder that is copied
PROMPTS = ("The capital of France is", "Who wrote the play?")


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path, tmp_path_factory):
    """A memory with an edit in its snapshot and one in its journal. Made once, then copied."""
    if not _MADE:
        _MADE.append(tmp_path_factory.mktemp("hostile") / "memory")
        config = MemoirConfig(k=12, tau=0.75, routing_block=1)
        with Memoir.open(tiny_llama, tiny_tokenizer, _MADE[0], config) as memoir:
            memoir.edit(PROMPTS[0], "Lyon")
            memoir.save_pretrained(_MADE[0])
            memoir.edit(PROMPTS[1], "Bob")
        memoir.detach()
    shutil.copytree(_MADE[0], tmp_path / "memory")
    return tmp_path / "memory"


def rewrite(folder, change):
    """Replaces the journal's record by what `change` makes of its (kind, values, tensors)."""
    snapshot = checkpoint.read(folder).checksum
    path = journal_path(folder, snapshot)
    (record,) = read(path)
    path.unlink()
    with WriterLock(folder) as lock, Journal(lock, snapshot) as journal:
        journal.append_all([change(record.kind, dict(record.values), dict(record.tensors))])


def values(**changes):
    return lambda kind, old, tensors: (kind, old | changes, tensors)


def without(name):
    return lambda kind, old, tensors: (
        kind,
        {key: value for key, value in old.items() if key != name},
        {key: value for key, value in tensors.items() if key != name},
    )


def tensor(name, change):
    return lambda kind, old, tensors: (kind, old, tensors | {name: change(tensors[name].clone()).contiguous()})


def put(place, number):
    def change(old):
        old.view(-1)[place] = number
        return old

    return change


def instead(kind, given, tensors=None):
    return lambda *_: (kind, given, tensors or {})


def threshold(tau=0.5, calibration=None, least=(100,), **tensors):
    given = {"tau": tau, "calibration": calibration, "time": 1.0}
    return instead("calibration", given, {"min_overlap": torch.tensor(least, dtype=torch.int32), **tensors})


NAN = float("nan")
REFUSED = {
    "unknown kind": instead("execute", {"code": "x"}),
    "page of -1": values(page=-1),
    "page far away": values(page=2**40),
    "page after the next": values(page=2),
    "page in words": values(page="a"),
    "page of a half": values(page=0.5),
    "page gone": without("page"),
    "id of another": values(id=7),
    "id in words": values(id="1"),
    "empty prompt": values(prompt=" "),
    "prompt that is a list": values(prompt=["a"]),
    "prompt gone": without("prompt"),
    "paraphrases of numbers": values(paraphrases=[1]),
    "bank of a number": values(bank=1),
    "bank of two lines": values(bank="a\nb"),
    "negative row": tensor("rows", put(0, -1)),
    "row far away": tensor("rows", put(0, 2**31 - 1)),
    "rows of two sides": tensor("rows", lambda old: old[None]),
    "rows gone": without("rows"),
    "more values than rows": tensor("values", lambda old: torch.cat([old, old])),
    "values of another width": tensor("values", lambda old: old[:, :-1]),
    "mask of other words": tensor("mask", lambda old: old[:-1]),
    "mask of another type": tensor("mask", lambda old: old.long()),
    "codes of other words": tensor("code_codes", lambda old: old[:, :-1]),
    "codes gone": without("code_codes"),
    "no codes at all": tensor("code_codes", lambda old: old[:0]),
    "three numbers of tokens": tensor("target_tokens", lambda old: torch.cat([old, old[:1]])),
    "deletes what is not there": instead("delete", {"ids": [9]}),
    "deletes in words": instead("delete", {"ids": ["a"]}),
    "deletes lists": instead("delete", {"ids": [[0]]}),
    "deletes nothing known": instead("delete", {}),
    "tau of nothing": threshold(tau=0.0),
    "tau of two": threshold(tau=2.0),
    "tau in words": threshold(tau="a"),
    "thresholds of too many": threshold(least=(1, 2, 3, 4, 5)),
    "a threshold of nothing": threshold(least=(0,)),
    "one threshold for all": instead(
        "calibration", {"tau": 0.5, "calibration": None}, {"min_overlap": torch.tensor(100).int()}
    ),
    "thresholds gone": instead("calibration", {"tau": 0.5, "calibration": None}),
    "calibration of words": threshold(calibration={"tau": "a"}),
    "calibration of words throughout": threshold(
        calibration={one.name: "a" for one in dataclasses.fields(Calibration)}
    ),
    "paraphrases that are one text": values(paraphrases="abc"),
    "row twice": tensor("rows", lambda old: torch.cat([old[:1], old[:-1]])),
    "rows of halves": tensor("rows", lambda old: old + 0.5),
    "values are nan": tensor("values", put(0, NAN)),
    "values are whole numbers": tensor("values", lambda old: old.long()),
    "mask of a bit too many": tensor("mask", lambda old: put(0, int(old[0]) ^ 1)(old)),
    "mask of bits beyond D": tensor("mask", put(3, -1)),
    "mask of no bit": tensor("mask", torch.zeros_like),
    "codes of every bit": tensor("code_codes", lambda old: torch.full_like(old, -1)),
    "tokens below nothing": tensor("target_tokens", put(0, -7)),
    "reads that are nan": tensor("reads", put(0, NAN)),
    "reads whose squares have no end": tensor("reads", put(0, 1e30)),
    "reads of other columns": tensor("reads", lambda old: old[:, 1:]),
    "reads of no token": tensor("reads", lambda old: old[:0]),
    "reads of another type": tensor("reads", lambda old: old.float()),
    "reads closed by words": values(stop="yes"),
    "reads closed by nothing": without("stop"),
    "background of one side": threshold(background=torch.ones(3).int()),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_records_that_fit_no_memory(folder, tiny_llama, tiny_tokenizer, change):
    rewrite(folder, change)
    before = [name for name, _ in tiny_llama.named_modules()]
    with pytest.raises(CheckpointError, match=r"record 1 of the journal"):
        Memoir.from_pretrained(tiny_llama, tiny_tokenizer, folder, check=False)
    assert [name for name, _ in tiny_llama.named_modules()] == before


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_texts_of_records_that_fit_no_memory(folder, change):
    """Without a model, texts alone are looked at: no other kind of error; `survey` tries them on the tensors."""
    rewrite(folder, change)
    try:
        _, edits, _ = current_edits(folder)
    except CheckpointError as error:
        assert "record 1 of the journal" in str(error)
    else:
        assert all(isinstance(edit.prompt, str) for edit in edits.values())
    try:
        found = survey(folder)
    except NewerVersionError as error:
        assert "does not know: 'execute'" in str(error)
    else:
        assert "record 1 of the journal" in found.damage[0]
        assert list(found.kept) == [0] and found.records == 0 and found.anything_lost
