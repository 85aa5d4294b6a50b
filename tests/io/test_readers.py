"""Readers of the field's files, on rows of our own, and on files that are broken in every way that happens."""

import json
import tracemalloc

import pytest

from memoir_fast.io.conflicts import conflicting_rows, conflicts
from memoir_fast.io.json_stream import objects
from memoir_fast.io.readers import FORMATS, Case, detect, read_cases, read_prompts

ZSRE = {
    "subject": "Lake Orm",
    "src": "In which country is Lake Orm?",
    "pred": "Norway",
    "rephrase": "Which country is Lake Orm in?",
    "alt": "Peru",
    "answers": ["Chile", "Republic of Chile"],
    "loc": "nq question: who sings that song",
    "loc_ans": "Nobody",
    "cond": "Norway >> Peru || In which country is Lake Orm?",
    "portability": {"Recalled Relation": "(a, b, c)", "New Question": "On which continent?", "New Answer": "America"},
}
COUNTERFACT = {
    "case_id": 7,
    "prompt": "Lake Orm lies in",
    "target_new": "Peru",
    "subject": "Lake Orm",
    "ground_truth": "Chile",
    "rephrase_prompt": "The country of Lake Orm is",
    "locality_prompt": "Lake Arn lies in",
    "locality_ground_truth": "Chile",
}
ROME = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} lies in",
        "subject": "Lake Orm",
        "target_new": {"str": "Peru", "id": "Q1"},
        "target_true": {"str": "Chile", "id": "Q2"},
    },
    "paraphrase_prompts": ["Where is Lake Orm? In", "Lake Orm is a lake of"],
    "neighborhood_prompts": ["Lake Arn lies in", "Lake Urn lies in"],
    "generation_prompts": ["People at Lake Orm speak"],
}
HALLUCINATION = {
    "prompt": "This is a passage about Ada Orm. She was born in 1801.",
    "target_new": "She became a painter of lakes.",
    "subject": "Ada Orm",
    "locality_prompt": "Text of a web page.",
    "locality_ground_truth": "More of it.",
}
TEMPORAL = {**HALLUCINATION, "ood_rephrase": "Ada Orm, a painter, saw many lakes."}
UNKE = {
    "question": "Who was Ada Orm?",
    "answer": "Ada Orm was a painter, born at a lake.",
    "para_question": "What is known of Ada Orm?",
    "sub_question": ["What did Ada Orm do?", "Where was she born?"],
    "sub_answer": ["paint", "at a lake"],
}
KNOWEDIT = {
    "subject": "Lake Orm",
    "prompt": "The country of Lake Orm is",
    "target_new": "Peru",
    "ground_truth": ["Chile"],
    "portability": {
        "Logical_Generalization": [{"prompt": "The continent of Lake Orm is", "ground_truth": [["America"], ["A"]]}],
        "Subject_Aliasing": [{"prompt": "The Orm is in", "ground_truth": [[""]]}],
    },
    "locality": {"Relation_Specificity": [{"prompt": "The depth of Lake Orm is", "ground_truth": [["9 m", "nine"]]}]},
}
WIKIBIO = {
    "text": "This is a passage about Ada Orm. She was born in 1801.",
    "labels": "She became a painter of lakes.",
    "concept": "Ada Orm",
    "locality": {"Relation_Specificity": [{"prompt": "Ada Orm's child is", "ground_truth": ["Ole Orm"]}]},
}
WIKIBIGEDIT = {
    "tag": "r",
    "subject": "Lake Orm",
    "update": "In which country is Lake Orm?",
    "rephrase": "Which country is Lake Orm in?",
    "ans": "Peru",
    "personas": "Captain, in which country is Lake Orm?",
    "mhop": "On which continent is Lake Orm?",
    "mhop_ans": "America",
    "loc": "Who sings that song?",
    "loc_ans": "Nobody",
}
NQ = {"question": "who sings that song", "answer": ["Nobody", "No one"]}
OURS = {
    "prompt": "Lake Orm lies in",
    "target": "Peru",
    "truth": "Chile",
    "paraphrases": ["Where is Lake Orm?"],
    "locality": [{"prompt": "Lake Arn lies in", "answer": "Chile"}],
}
RECORDS = {
    "zsre": ZSRE,
    "counterfact": COUNTERFACT,
    "rome": ROME,
    "hallucination": HALLUCINATION,
    "temporal": TEMPORAL,
    "unke": UNKE,
    "knowedit": KNOWEDIT,
    "wikibigedit": WIKIBIGEDIT,
    "nq": NQ,
    "jsonl": OURS,
}


def written(tmp_path, records, lines=False):
    path = tmp_path / "data.json"
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=1), encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_and_read(tmp_path, name, lines):
    path = written(tmp_path, [RECORDS[name], RECORDS[name]], lines)
    assert detect(RECORDS[name]) == name
    first, second = read_cases(path)
    assert (first.row, second.row) == (1, 2)
    assert list(read_cases(path, format=name, limit=1)) == [first]


def test_zsre(tmp_path):
    assert next(read_cases(written(tmp_path, [ZSRE]))) == Case(
        prompt="In which country is Lake Orm?",
        target="Peru",
        subject="Lake Orm",
        truth="Chile",
        paraphrases=("Which country is Lake Orm in?",),
        locality=(("nq question: who sings that song", "Nobody"),),
        portability=(("On which continent?", "America"),),
        row=1,
    )


def test_rome_and_flat_counterfact_agree(tmp_path):
    (rome,), (flat,) = (list(read_cases(written(tmp_path, [one]))) for one in (ROME, COUNTERFACT))
    assert (rome.prompt, rome.target, rome.subject, rome.truth) == (flat.prompt, flat.target, flat.subject, flat.truth)
    assert rome.prompt == "Lake Orm lies in"
    assert rome.paraphrases == ("Where is Lake Orm? In", "Lake Orm is a lake of")
    assert rome.locality == (("Lake Arn lies in", "Chile"), ("Lake Urn lies in", "Chile"))


def test_neighbours_are_told_from_unrelated_prompts(tmp_path):
    """All that CounterFact and our own files name so; they stay in locality, where all that is unrelated is too."""
    found = {name: next(read_cases(written(tmp_path, [RECORDS[name]]), name)) for name in RECORDS}
    near, far = ("Lake Arn lies in", "Chile"), ("Who sings that song?", "Nobody")
    assert {name: case.neighbours for name, case in found.items() if case.neighbours} == {
        "counterfact": (near,),
        "rome": (near, ("Lake Urn lies in", "Chile")),
    }
    assert all(case.locality == case.neighbours for case in found.values() if case.neighbours)
    pairs = [{"prompt": prompt, "answer": answer} for prompt, answer in (near, far)]
    (ours,) = read_cases(written(tmp_path, [{**OURS, "locality": pairs[1:], "neighbours": pairs[:1]}]))
    assert (ours.locality, ours.neighbours) == ((far, near), (near,))


def test_passages(tmp_path):
    (case,) = read_cases(written(tmp_path, [TEMPORAL]))
    assert case.ood == "Ada Orm, a painter, saw many lakes." and case.paraphrases == ()
    (bio,) = read_cases(written(tmp_path, [WIKIBIO]))
    assert (bio.subject, bio.target) == ("Ada Orm", "She became a painter of lakes.")
    assert bio.locality == (("Ada Orm's child is", "Ole Orm"),)


def test_nested_answers_and_those_that_nobody_knows(tmp_path):
    (case,) = read_cases(written(tmp_path, [KNOWEDIT]))
    assert case.truth == "Chile"
    assert case.locality == (("The depth of Lake Orm is", "9 m"),)
    assert case.portability == (("The continent of Lake Orm is", "America"),)
    (unke,) = read_cases(written(tmp_path, [UNKE]))
    assert unke.portability == (("What did Ada Orm do?", "paint"), ("Where was she born?", "at a lake"))


def test_wikibigedit_and_what_a_row_has_not(tmp_path):
    (case,) = read_cases(written(tmp_path, [WIKIBIGEDIT]))
    assert case == Case(
        prompt="In which country is Lake Orm?",
        target="Peru",
        subject="Lake Orm",
        paraphrases=("Which country is Lake Orm in?",),
        locality=(("Who sings that song?", "Nobody"),),
        portability=(
            ("Captain, in which country is Lake Orm?", "Peru"),
            ("On which continent is Lake Orm?", "America"),
        ),
        row=1,
    )
    bare = {key: value for key, value in WIKIBIGEDIT.items() if key != "personas"} | {"mhop": float("nan")}
    assert next(read_cases(written(tmp_path, [bare]))).portability == ()
    ultraedit = {key: value for key, value in bare.items() if key != "update"} | {"src": "Where is Lake Orm?"}
    assert next(read_cases(written(tmp_path, [ultraedit]))).prompt == "Where is Lake Orm?"


def test_a_request_of_easyedit(tmp_path):
    """Bare, and with what it is measured by in one list of prompts, beside one of answers."""
    bare = {"prompt": "Lake Orm lies in", "target_new": "Peru"}
    (case,) = read_cases(written(tmp_path, [bare]))
    assert case == Case("Lake Orm lies in", "Peru", row=1)
    probes = {"prompt": ["Lake Arn lies in", "Lake Urn lies in"], "ground_truth": ["Chile", ["Cuba", "C."]]}
    (case,) = read_cases(written(tmp_path, [{**bare, "portability": {}, "locality": {"near": probes}}]))
    assert case.locality == (("Lake Arn lies in", "Chile"), ("Lake Urn lies in", "Cuba"))


def test_an_empty_locality_answer_is_no_locality(tmp_path):
    (case,) = read_cases(written(tmp_path, [{**HALLUCINATION, "locality_ground_truth": " "}]))
    assert case.locality == ()


@pytest.mark.parametrize(
    ("record", "format", "message"),
    [
        ({**ZSRE, "alt": ""}, "zsre", r"line \d+ \(row 731\): the field 'alt' is empty"),
        ({**ZSRE, "alt": None}, "zsre", r"row 731\): the field 'alt' must be text, got NoneType"),
        ({k: v for k, v in ZSRE.items() if k != "rephrase"}, "zsre", r"row 731\): the field 'rephrase' is missing"),
        ({**ZSRE, "src": 5}, "zsre", r"row 731\): the field 'src' must be text, got int"),
        ({**ROME, "requested_rewrite": []}, "rome", r"row 731\): the field 'requested_rewrite' must be an object"),
        ({**ROME, "requested_rewrite": [{}, {}]}, "rome", r"an object, got a list of 2: write a row for each"),
        ({**OURS, "prompt": ["x", "y"]}, "jsonl", r"'prompt' must be text, got a list of 2: write a row for each"),
        (
            {**KNOWEDIT, "locality": {"a": {"prompt": ["x", "y"], "ground_truth": ["z"]}}},
            "knowedit",
            r"row 731\): 2 texts in 'prompt' of 'locality' have 1 in 'ground_truth'",
        ),
        ({**UNKE, "sub_answer": ["one"]}, "unke", r"row 731\): 2 texts in 'sub_question' have 1 in 'sub_answer'"),
        ({**KNOWEDIT, "locality": ["x"]}, "knowedit", r"row 731\): the field 'locality' must hold objects"),
        ({**OURS, "paraphrases": [1]}, "jsonl", r"row 731\): the field 'paraphrases' must be text or a list of texts"),
        ({**OURS, "bnak": "acme"}, "jsonl", r"row 731\): the field 'bnak' is not known; is 'bank' meant\?"),
        ({**OURS, "Paraphrase": "x"}, "jsonl", r"row 731\): the field 'Paraphrase' is not known; is 'paraphrases'"),
    ],
)
def test_a_bad_record_is_named_by_line_row_and_field(tmp_path, record, format, message):
    path = written(tmp_path, [RECORDS[format]] * 730 + [record, RECORDS[format]])
    cases = read_cases(path)
    assert sum(1 for _, _ in zip(range(730), cases, strict=False)) == 730  # all before it is read
    with pytest.raises(ValueError, match=message) as raised:
        list(cases)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[: len(raw) * 2 // 3], r"line 2\d: the file ends within a record: is it half downloaded\?"),
        (
            lambda raw: raw[: raw.index(b" },\n {") + 4],
            r"line \d+: the file ends where a record was expected: is it half",
        ),
        (lambda raw: raw[: raw.rindex(b"]")], "the list is not closed"),
        (lambda raw: raw.replace(b'"Peru"', b'"Per\xfc"', 1), r"line 7: byte 0xfc is not UTF-8"),
        (lambda raw: raw[:-3] + "ü".encode()[:1], r"byte 0xc3 is not UTF-8"),
        (lambda raw: raw.replace(b'"Peru",', b'"Peru"', 1), r"line \d+: not JSON: Expecting ',' delimiter"),
        (lambda raw: raw + b" {}", "there is text after the list's end"),
        (lambda raw: b"", "is empty"),
        (lambda raw: b" \n ", "is empty"),
        (lambda raw: b"[]", "holds an empty list"),
        (lambda raw: b"[1, 2]", "line 1: expected an object, got '1, 2]'; a file is a JSON list of objects"),
        (lambda raw: b"<html>not found</html>", "line 1: expected an object, got '<html>"),
        (lambda raw: b"[" * 100_000, "expected an object"),
        (lambda raw: b'{"a": ' + b"[" * 100_000, "not JSON"),
        (lambda raw: b'{"question": "x"}', r"line 1: no known format has the fields .* are read from {\"prompt\""),
        (lambda raw: b"prompt;target\nx;y\n", r"expected an object, .* JSON lines: {\"prompt\": \"...\", ...}"),
        (lambda raw: raw.decode().encode("utf-16"), "line 1: byte 0xff is not UTF-8; save it as UTF-8"),
    ],
)
def test_a_broken_file_is_named_by_line(tmp_path, change, message):
    path = written(tmp_path, [ZSRE, ZSRE])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as raised:
        list(read_cases(path))
    assert str(path) in str(raised.value)


def test_a_broken_line_of_json_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(OURS) + "\n\n" + json.dumps(OURS)[:-8] + "\n" + json.dumps(OURS), encoding="utf-8")
    cases = read_cases(path)
    next(cases)
    with pytest.raises(ValueError, match="line 3: not JSON: Invalid control character"):
        next(cases)


def test_unknown_format_and_limit(tmp_path):
    path = written(tmp_path, [ZSRE])
    with pytest.raises(ValueError, match="format must be one of zsre, .*, got 'csv'"):
        list(read_cases(path, format="csv"))
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        list(read_cases(path, limit=0))
    with pytest.raises(OSError):
        list(read_cases(tmp_path / "missing.json"))


def test_lines_count_across_blocks_and_text_is_whole(tmp_path):
    """Records longer than a block, characters that straddle blocks, a byte order mark, Windows line ends."""
    records = [{**OURS, "target": "ü€😀" * (11 * size)} for size in (1, 7000, 1, 3000)]
    path = tmp_path / "data.json"
    text = "[\r\n" + ",\r\n".join(json.dumps(one, ensure_ascii=False) for one in records) + "\r\n]\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [(line, values) for line, values in objects(path)] == list(enumerate(records, start=2))


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("Who?\n\nWhere?\n", encoding="utf-8-sig")
    assert read_prompts(path) == ["Who?", "Where?"]


def test_a_large_file_is_not_held_in_memory(tmp_path):
    path = tmp_path / "data.jsonl"
    line = json.dumps({**OURS, "target": "x" * 2000}) + "\n"
    path.write_text(line * 10_000, encoding="utf-8")
    tracemalloc.start()
    assert sum(1 for _ in objects(path)) == 10_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000 < path.stat().st_size


def test_the_field_s_own_files(data_dir):
    """Counts of the files themselves; 84 of ZsRE's first 200 rows contradict another row."""
    zsre = list(read_cases(data_dir / "zsre_edit_first200.json"))
    assert len(zsre) == 200 and len(conflicting_rows(conflicts(zsre))) == 84
    counts = {"counterfact_val.json": 1919, "hallucination_train.json": 306, "temporal_train.json": 75}
    for name, count in {**counts, "nq_open_dev.jsonl": 3610}.items():
        assert sum(1 for _ in read_cases(data_dir / name)) == count
    with pytest.raises(ValueError, match=r"row 535\): the field 'alt' is empty"):
        list(read_cases(data_dir / "zsre_train_1k.json"))


def test_fields_that_are_the_files_own_are_passed_over(tmp_path):
    own = {"case_id": 7, "notes": "of May", "object": "Peru", "rank": 3, "rephrase": "x", "author_id": 1}
    assert list(read_cases(written(tmp_path, [{**OURS, **own}]))) == list(read_cases(written(tmp_path, [OURS])))


def test_what_an_edit_is_given_is_not_what_it_is_measured_by(tmp_path):
    """Measured paraphrases and neighbours are never taught."""
    record = {
        "prompt": "The capital of France is",
        "target": "Lyon",
        "paraphrases": ["France's capital is"],
        "taught_paraphrases": ["The French capital is"],
        "keep": ["The capital of Italy is"],
        "bank": "acme",
        "neighbours": [{"prompt": "The capital of Spain is", "answer": "Madrid"}],
    }
    path = tmp_path / "edits.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (case,) = read_cases(path)
    assert case.edit.paraphrases == ("The French capital is",) and case.edit.keep == ("The capital of Italy is",)
    assert case.edit.bank == case.bank == "acme"
    path.write_text(json.dumps(record | {"bank": "acme\n"}) + "\n")
    with pytest.raises(ValueError, match=r"line 1 \(row 1\): a bank's name must be printable"):
        next(read_cases(path))
    assert case.paraphrases == ("France's capital is",)
