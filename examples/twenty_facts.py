"""A newcomer's twenty facts: teach them in one call, ask in other words, and see what else has changed.

People, companies, an API, a JSON line, Spanish, Chinese, a long text, a port, two chats: all in twenty_facts.jsonl.

python examples/twenty_facts.py
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from memoir_fast import Edit, Memoir, MemoirConfig
from memoir_fast.evaluation.answers import says
from memoir_fast.hf.loading import load_model

UNRELATED = [
    "Water boils at a temperature of",
    "The largest planet of the solar system is",
    "Who painted the Mona Lisa?",
    "How many legs does a spider have?",
    "The opposite of hot is",
    "What is photosynthesis?",
    "def add(a, b):",
    "Write one sentence about the sea.",
]
NEW, BEHIND, BATCH = 60, 40, 20  # tokens of an answer, and of what is looked at behind a target; prompts at a time

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
parser.add_argument("--every", type=int, default=1, help="teach every so manieth fact")
parser.add_argument("--json", type=Path, help="a file for the figures and all that was said")
options = parser.parse_args()
model, tokenizer = load_model(options.model, dtype="float32")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
facts = [json.loads(line) for line in Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
facts = facts[:: options.every]


def in_template(question: str) -> str:
    """A question in the model's chat template, up to where the assistant begins to speak."""
    turns = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def tokens(prompt: str, chat: bool) -> list[int]:
    """Token ids of a prompt; the chat template has all special tokens itself."""
    return tokenizer(in_template(prompt) if chat else prompt, add_special_tokens=not chat).input_ids


def one_line(text: str) -> str:
    """The text with each run of white space as one space."""
    return " ".join(text.split())


def greedy(prompts: list[list[int]], new: int, least: int = 0) -> list[list[int]]:
    """What the model says after each prompt, up to its end token."""
    found = []
    for start in range(0, len(prompts), BATCH):
        part = {"input_ids": prompts[start : start + BATCH]}
        inputs = tokenizer.pad(part, padding_side="left", return_tensors="pt").to(model.device)
        output = model.generate(**inputs, min_new_tokens=least, max_new_tokens=new, do_sample=False)
        for ids in output[:, inputs.input_ids.shape[1] :].tolist():
            found.append(ids[: ids.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in ids else ids)
    return found


def ask(questions: list[tuple[str, int, str, bool]], new: int = NEW) -> list[dict[str, Any]]:
    """Answers (kind; number of the fact that it is about, -1 for none; prompt; in a chat?), and whether they say the
    target.

    A model that would say nothing at all, as this one after many a bare question, is not allowed to end.
    """
    prompts = [tokens(prompt, chat) for _, _, prompt, chat in questions]
    said = greedy(prompts, new)
    silent = [index for index, ids in enumerate(said) if not tokenizer.decode(ids, skip_special_tokens=True).strip()]
    for index, ids in zip(silent, greedy([prompts[index] for index in silent], new, least=new), strict=True):
        said[index] = ids
    found = []
    for (kind, number, prompt, chat), ids in zip(questions, said, strict=True):
        answer = one_line(tokenizer.decode(ids, skip_special_tokens=True))
        one = {"kind": kind, "fact": number, "prompt": prompt, "chat": chat, "answer": answer, "ids": ids}
        if number >= 0:
            target = one_line(facts[number]["target"])
            one |= {"says": says(answer, target), "has": target in answer}
        found.append(one)
    return found


@torch.no_grad()
def perplexity(before: list[int], after: list[int]) -> float:
    """How much `after` surprises the model behind `before`."""
    ids = torch.tensor([before + after], device=model.device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(before) - 1 : -1]
    return float(cross_entropy(logits, ids[0, len(before) :]).exp())


def note_fluency(asked: list[dict[str, Any]]) -> None:
    """Adds to each whose answer goes on behind the target how, beside what the unedited model says there."""
    found = []
    for one in asked:
        ids, target = one["ids"], one_line(facts[one["fact"]]["target"])
        ends = [end for end in range(1, len(ids)) if one_line(tokenizer.decode(ids[:end])).startswith(target)]
        if ends and ids[ends[0]] != tokenizer.eos_token_id:
            before = tokens(one["prompt"], one["chat"]) + ids[: ends[0]]
            found.append((one, before, ids[ends[0] :][:BEHIND]))
    with memoir.disabled():
        answers = greedy([before for _, before, _ in found], BEHIND)
        for (one, before, behind), unedited in zip(found, answers, strict=True):
            most, unedited_most = (max(Counter(said).values()) for said in (behind, unedited))
            ratio = perplexity(before, behind) / perplexity(before, unedited)
            one |= {"ratio": ratio, "most_of_one": most, "unedited_most": unedited_most}


memoir = Memoir.attach(model, tokenizer, MemoirConfig(routing="early"))
chat = [fact.get("chat", False) for fact in facts]
prompts = [in_template(fact["prompt"]) if fact.get("chat") else fact["prompt"] for fact in facts]
edits = [Edit(prompt, fact["target"], subject=fact["subject"]) for prompt, fact in zip(prompts, facts, strict=True)]
results = memoir.edit(edits)

longest = max(len(tokens(fact["target"], False)) for fact in facts)
asked = ask([("taught", n, fact["prompt"], chat[n]) for n, fact in enumerate(facts)], longest + BEHIND)
note_fluency(asked)
questions = [("reworded", n, text, chat[n]) for n, fact in enumerate(facts) for text in fact["rewordings"]]
questions += [("near miss", n, fact["near_miss"], chat[n]) for n, fact in enumerate(facts)]
questions += [("in a chat", n, facts[n]["rewordings"][1], True) for n in range(4) if not chat[n]]  # taught plainly
asides = [("unrelated", -1, text, form) for form in (False, True) for text in UNRELATED]
answers = ask(questions + asides)
asked += answers[: len(questions)]
edited = answers[len(questions) :]
with memoir.disabled():
    unedited = ask(asides)

print(f"{'':11}{'target?':9}prompt -> answer")
for one in sorted(asked, key=lambda one: one["fact"]):
    told = one["has"] if one["kind"] == "near miss" else one["says"]
    print(f"{one['kind']:11}{'said' if told else '-':9}{one['prompt']} -> {one['answer'][:100]}")
for after, before in zip(edited, unedited, strict=True):
    print(f"unrelated  {'as before' if after['ids'] == before['ids'] else 'CHANGED'}: {after['prompt']}")

said = Counter(one["kind"] for one in asked if one["says"])
fluent = [one for one in asked if "ratio" in one]
figures = {
    "facts": len(facts),
    "learned": sum(result.learned for result in results),
    "said": said["taught"],
    "rewordings_said": said["reworded"],
    "near_misses_told": sum(one["has"] for one in asked if one["kind"] == "near miss"),
    "in_a_chat_said": said["in a chat"],
    "unrelated_changed": sum(after["ids"] != before["ids"] for after, before in zip(edited, unedited, strict=True)),
    **{f"worst_{name}": max((one[name] for one in fluent), default=None) for name in ("ratio", "most_of_one")},
}
print(json.dumps(figures, indent=2))
if options.json:
    options.json.write_text(json.dumps({**figures, "asked": asked + edited}, ensure_ascii=False), encoding="utf-8")
