"""The README does what it says: its Python runs, its tables are complete, its links lead somewhere."""

import re
from pathlib import Path

import pytest

from memoir_fast.cli import demo
from memoir_fast.evaluation.answers import says
from memoir_fast.io.facts import facts, unrelated

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", f"{README}\n{QUICKSTART}", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=("README", "quickstart"))
def test_python_runs(block, tiny_llama, tiny_tokenizer, monkeypatch, tmp_path, capsys):
    """With a tiny model and its tokenizer in the place of the hub's."""
    import torch
    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda name: tiny_llama)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: tiny_tokenizer)
    monkeypatch.chdir(tmp_path)
    inputs = tiny_tokenizer("The capital of Australia is", return_tensors="pt")
    before = tiny_llama(**inputs).logits

    names = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)

    memoir = names["memoir"]
    assert "edit_id=0" in capsys.readouterr().out, "the edited prompt was not routed to its edit"
    assert memoir.status().edits == 1, "the reloaded memory lacks the edit"
    with memoir.disabled(), torch.no_grad():
        assert torch.equal(tiny_llama(**inputs).logits, before)
    with torch.no_grad():
        assert not torch.equal(tiny_llama(**inputs).logits, before), "the reloaded memory changes nothing"


def test_the_demos_rows_are_those_that_it_shows(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    shown = [(row.kind, row.prompt, row.target or "-") for row in demo._rows(tiny_tokenizer, facts()[:32], unrelated())]
    part = README.split("## What the demo shows")[1].split("\n## ")[0]
    told = [tuple(line.split(" | ")) for line in re.findall(r"^\| (.*) \|$", part, re.MULTILINE)[2:]]
    assert {kind for kind, *_ in told} == {kind for kind, *_ in shown} - {"paraphrase"}
    for kind, prompt, taught, before, after, right in told:
        assert (kind, prompt, taught) in shown
        assert right == ("yes" if (before == after if taught == "-" else says(after, taught)) else "NO"), prompt


OF_PAGES = {
    f"{name}-{index}": block
    for name in ("your-model", "chats", "serving")
    for index, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / f"{name}.md").read_text(), re.MULTILINE | re.DOTALL)
    )
    if not re.search(r"torch\.compile|torchrun|generate_batch", block)  # slow; tests of their own run such calls
}


@pytest.mark.parametrize("name", OF_PAGES)
def test_python_of_pages_runs(name, tiny_llama, tiny_tokenizer, monkeypatch, tmp_path):
    """Each on a memory of its own, with what the page speaks of."""
    import torch

    from memoir_fast import Memoir, MemoirConfig

    monkeypatch.chdir(tmp_path)
    tiny_tokenizer.chat_template = "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}</s>{% endfor %}"
    tokens = tiny_tokenizer("The refund period is").input_ids
    names = {
        "model": tiny_llama,
        "tokenizer": tiny_tokenizer,
        "Memoir": Memoir,
        "MemoirConfig": MemoirConfig,
        "chat": lambda question: question,
        "inputs": tiny_tokenizer(["The refund period is"] * 3, return_tensors="pt") | {"max_new_tokens": 2},
        "ids": torch.tensor([tokens * 2]),
        "positions": torch.tensor([[*range(len(tokens))] * 2]),
        "requests": [("The sky is", "Rome")],
        "acknowledge": lambda result: result,
    }
    if "Memoir." not in OF_PAGES[name]:
        names["memoir"] = Memoir.attach(tiny_llama, tiny_tokenizer, MemoirConfig(background=8, check=False))
    exec(compile(OF_PAGES[name], f"docs/{name}", "exec"), names)


def test_there_is_python_to_run():
    assert len(BLOCKS) == 2 and len(OF_PAGES) == 7


def test_environment_variables_are_all_told():
    sources = [ROOT / "setup.py"]
    for folder, pattern in (("memoir_fast", "*.py"), ("kernels", "*.py"), ("csrc", "*.cpp"), ("tests", "*.py")):
        sources += (ROOT / folder).rglob(pattern)
    read = set()
    for path in sources:
        read |= set(re.findall(r"(?:environ(?:\.get\(|\[)|getenv\()\"(MEMOIR_FAST_\w+)\"", path.read_text()))
    page = (ROOT / "docs" / "operations.md").read_text()
    told = set(re.findall(r"^\| `(MEMOIR_FAST_\w+)` \|", page, re.MULTILINE))
    assert told == read


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make (demo|test|newest|matrix|lint|docs|gpu|bench|venv|clean|help)\b", README)) <= targets


PAGES = ["README.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), f"{page} links to {link}"
