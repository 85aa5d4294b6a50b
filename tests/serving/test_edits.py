"""Edits over HTTP: taught, listed, deleted; each is in force, and in the folder, once it was answered."""

import pytest

for _package in ("fastapi", "uvicorn", "openai", "prometheus_client"):
    pytest.importorskip(_package, reason="needs the extra serve")

from memoir_fast.io.durable import read_pair  # noqa: E402
from memoir_fast.serving.edits import edit_from  # noqa: E402

RIVER = "The river runs through"
ADMIN = "the-admins-own-token"


@pytest.fixture
def admin(client):
    """A function (method, path, body) -> (status, answer) with the admin's token."""
    return lambda *args, **kwargs: client(*args, key=ADMIN, **kwargs)[:2]


def test_an_edit_is_answered_with_at_once_and_no_more_once_it_is_deleted(client, admin, keys, alone, memoir):
    before = client.complete(RIVER, keys["acme"])
    edit = {"prompt": RIVER, "target": "Rome", "bank": "acme", "author": "Jo", "source": "ticket 7"}
    status, said = admin("POST", "/memoir/edits", edit)
    assert status == 200 and said["bank"] == "acme" and not said["replaced"], said
    now = client.complete(RIVER, keys["acme"])
    assert now == alone(RIVER, keys["acme"]) != before and now.startswith(" Ro")
    assert client.complete(RIVER, keys["globex"]) == client.complete(RIVER, keys[""]) == before
    written = [one.values.get("prompt") for one in read_pair(memoir._durable.folder)[1]]
    assert written[-1] == RIVER
    status, listed = admin("GET", "/memoir/edits?bank=acme&after=3")
    (row,) = listed["edits"]
    assert row.pop("taught_at") > 1e9 and row == {"id": said["edit_id"], **edit} and listed["next"] is None
    assert admin("DELETE", f"/memoir/edits/{said['edit_id']}") == (200, {"deleted": said["edit_id"]})
    assert client.complete(RIVER, keys["acme"]) == before
    assert admin("DELETE", f"/memoir/edits/{said['edit_id']}")[0] == 404


def test_several_at_once_are_paged_through(admin, memoir):
    prompts = [f"The number {number} is" for number in range(3)]
    further = {"bank": "b", "paraphrases": ["Which number?"], "keep": ["Who?", "Where?"]}
    edits = [{"prompt": one, "target": "Rome", **further} for one in prompts]
    status, said = admin("POST", "/memoir/edits", edits)
    assert status == 200 and [one["prompt"] for one in said] == prompts
    found, after = [], -1
    while after is not None:
        status, listed = admin("GET", f"/memoir/edits?bank=b&limit=2&after={after}")
        assert status == 200 and len(listed["edits"]) <= 2
        found, after = found + listed["edits"], listed["next"]
    assert [{name: one[name] for name in edits[0]} for one in found] == edits
    for one in found:
        assert admin("DELETE", f"/memoir/edits/{one['id']}")[0] == 200
    assert len(memoir.edits) == 4


def test_status_and_calibration(admin, memoir):
    status, said = admin("GET", "/memoir/status")
    assert status == 200 and said["edits"] == 4 and said["banks"] == {"": 1, "acme": 2, "globex": 1}
    tau = memoir.tau
    status, said = admin("POST", "/memoir/calibrate", {"false_match_rate": 0.01})
    try:
        assert status == 200 and said["false_match_rate"] == 0.01 and said["tau"] == memoir.tau
        assert admin("POST", "/memoir/calibrate")[0] == 200
    finally:
        memoir.layer.tau, memoir.calibration = tau, None


@pytest.mark.parametrize(
    ("method", "path", "raw", "text"),
    [
        ("POST", "/memoir/edits", "{", "Expecting"),
        ("POST", "/memoir/edits", None, "an edit is a JSON object"),
        ("POST", "/memoir/edits", "3", "an edit is a JSON object"),
        ("POST", "/memoir/edits", "[]", "holds one at least"),
        ("POST", "/memoir/edits", '{"prompt": "a"}', "an edit is a JSON object"),
        ("POST", "/memoir/edits", '{"prompt": "a", "target": ""}', "must not be empty"),
        ("POST", "/memoir/edits", '{"prompt": "a", "target": 3}', "must be a string"),
        ("POST", "/memoir/edits", '{"prompt": "a", "target": "b", "banks": "c"}', "has the fields prompt, target"),
        ("POST", "/memoir/edits", '{"prompt": "a", "target": "b", "bank": " c"}', "white space around it"),
        ("POST", "/memoir/edits", '{"prompt": "a", "target": "b", "keep": "c"}', "lists of texts"),
        ("POST", "/memoir/edits", '{"prompt": "a", "prompt": "b", "target": "c"}', "twice"),
        (
            "POST",
            "/memoir/edits",
            '[{"prompt": "a", "target": "b"}, {"prompt": "c"}]',
            "edit 2 of 2: an edit is a JSON object",
        ),
        ("POST", "/memoir/edits", "prompt=a", "the body must be JSON"),
        ("POST", "/memoir/edits?x=1", '{"prompt": "a", "target": "b"}', "not expected"),
        ("GET", "/memoir/edits?limit=0", None, "limit must lie in"),
        ("GET", "/memoir/edits?after=x", None, "whole number"),
        ("GET", "/memoir/edits?page=2", None, "parameters are bank, after, limit"),
        ("DELETE", "/memoir/edits/first", None, "whole number"),
        ("DELETE", "/memoir/edits/0?id=1", None, "id stands in the path"),
        ("POST", "/memoir/edits", '{"prompt": "\\ud800", "target": "b"}', "half a character"),
        ("POST", "/memoir/calibrate", '{"rate": 1}', "calibrate takes"),
        ("POST", "/memoir/calibrate", '{"false_match_rate": "1"}', "calibrate takes"),
        ("POST", "/memoir/calibrate", '{"false_match_rate": 2}', "must lie in"),
        ("POST", "/memoir/calibrate", '{"irrelevant_prompts": "a"}', "calibrate takes"),
        ("POST", "/memoir/calibrate", '{"irrelevant_prompts": ["a"]}', "at least 20"),
    ],
)
def test_what_is_malformed_is_said_and_changes_nothing(admin, memoir, method, path, raw, text):
    before, tau = dict(memoir.edits), memoir.tau
    status, said = admin(method, path, raw=raw)
    assert status == 400 and text in said["error"]["message"], said
    assert memoir.edits == before and memoir.tau == tau


def test_a_folder_that_cannot_be_written_leaves_the_memory_as_it_was(admin, client, keys, memoir, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before, said_before = dict(memoir.edits), client.complete(RIVER, keys["acme"])
    monkeypatch.setattr(memoir._durable, "edited", full)
    status, said = admin("POST", "/memoir/edits", {"prompt": RIVER, "target": "camel"})
    assert status == 500 and "No space left" in said["error"]["message"]
    assert memoir.edits == before and client.complete(RIVER, keys["acme"]) == said_before


def test_a_list_that_stops_says_which_edits_were_made(admin, memoir, monkeypatch):
    before, write, prompts = (
        dict(memoir.edits),
        memoir._durable.edited,
        ["The first is", "The second is", "The third is"],
    )

    def full(written, *rest):
        if memoir.edits[written.edit_id].prompt == prompts[-1]:
            raise OSError(28, "No space left on device")
        return write(written, *rest)

    monkeypatch.setattr(memoir._durable, "edited", full)
    status, said = admin("POST", "/memoir/edits", [{"prompt": one, "target": "Rome"} for one in prompts])
    assert status == 500 and said["error"]["message"].endswith("No space left on device; of 3 edits 2 were made")
    assert [one["prompt"] for one in said["edits"]] == prompts[:2]
    assert {one.prompt for one in memoir.edits.values()} == {one.prompt for one in before.values()} | {*prompts[:2]}
    for one in said["edits"]:
        assert admin("DELETE", f"/memoir/edits/{one['edit_id']}")[0] == 200


def test_a_list_is_checked_before_its_first_is_learned(admin, memoir, monkeypatch):
    before = dict(memoir.edits)
    edits = [{"prompt": "The first is", "target": "Rome"}, {"prompt": "The second is " * 500, "target": "Rome"}]
    status, said = admin("POST", "/memoir/edits", [edits[0], {**edits[1], "prompt": edits[1]["prompt"][:3000]}])
    assert status == 400 and "context" in said["error"]["message"] and said["edits"] == []
    monkeypatch.setattr(memoir.layer.store, "max_edits", len(before) + 1)
    status, said = admin("POST", "/memoir/edits", [{"prompt": one, "target": "Rome"} for one in ("a", "b")])
    assert status == 507 and said["edits"] == [] and memoir.edits == before


def test_an_edit_of_json():
    with pytest.raises(TypeError, match="an edit is a JSON object"):
        edit_from(["a", "b"])
