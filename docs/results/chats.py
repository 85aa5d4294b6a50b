"""What is said in chats: edits taught plainly or in the chat template, asked plainly, in a chat and as a second turn.

For each of the six combinations: how many paraphrases are routed to their own edit, how many irrelevant questions match
one, and how many answers to the edits' own prompts, generated freely, begin with the target.

    python docs/results/chats.py --data zsre_train_1k.json --irrelevant nq_last_1000.jsonl --json chats.json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from memoir_fast import Memoir
from memoir_fast.core.edit import Edit
from memoir_fast.evaluation.answers import says
from memoir_fast.hf.chat import chat_text
from memoir_fast.hf.loading import load_model
from memoir_fast.io.readers import read_cases, read_prompts

BEFORE = [
    ("system", "You are a pirate and speak like one."),
    ("user", "Hello! How are you today?"),
    ("assistant", "Ahoy! I be fine. What do ye want to know?"),
]
AT_ONCE = 10  # prompts of one generation

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
parser.add_argument("--data", type=Path, required=True, help="rows to be taught")
parser.add_argument("--rows", type=int, default=40)
parser.add_argument("--irrelevant", type=Path, required=True, help="questions that no row is about")
parser.add_argument("--questions", type=int, default=150, help="how many of them, the last of the file")
parser.add_argument("--recipe", help="Default: the library's")
parser.add_argument("--json", type=Path, help="a file for the figures and all that was said")
options = parser.parse_args()


def asked(prompt: str, form: str) -> str:
    """A prompt as it is, as a chat, or as the second turn of one."""
    if form == "plainly":
        return prompt
    return chat_text(tokenizer, [*(BEFORE if form == "second turn" else ()), ("user", prompt)])


def answers(prompts: Sequence[str], new: int) -> tuple[list[int], list[str]]:
    """The edits that prompts follow, and what is said after them."""
    routes, said = [], []
    for start in range(0, len(prompts), AT_ONCE):
        texts = prompts[start : start + AT_ONCE]
        special = not texts[0].startswith(opening)
        inputs = tokenizer(texts, add_special_tokens=special, padding=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        routes += [route.edit_id for route in memoir.last_routes]
        said += tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return routes, said


model, tokenizer = load_model(options.model, dtype="float32")
tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "left"
opening = chat_text(tokenizer, [("user", "?")])[:5]
cases = list(read_cases(options.data, unusable=[]))[: options.rows]
irrelevant = read_prompts(options.irrelevant)[-options.questions :]
longest = max(len(tokenizer(case.target).input_ids) for case in cases) + 2
rows = []
for taught in ("plainly", "in a chat"):
    memoir = Memoir.attach(model, tokenizer)
    edits = [Edit(asked(case.prompt, taught), case.target) for case in cases]
    learned = memoir.edit(edits, recipe=options.recipe)
    for form in ("plainly", "in a chat", "second turn"):
        with torch.no_grad():
            own, said = answers([asked(case.prompt, form) for case in tqdm(cases, desc=f"{taught}, {form}")], longest)
            paraphrases = [(index, case.paraphrases[0]) for index, case in enumerate(cases) if case.paraphrases]
            found, reworded = answers([asked(text, form) for _, text in paraphrases], longest)
            matched, _ = answers([asked(text, form) for text in irrelevant], 1)
        good = [says(text, case.target) for text, case in zip(said, cases, strict=True)]
        again = [says(text, cases[index].target) for text, (index, _) in zip(reworded, paraphrases, strict=True)]
        rows.append(
            {
                "taught": taught,
                "asked": form,
                "own": sum(route == index for index, route in enumerate(own)) / len(own),
                "paraphrases": sum(route == at for route, (at, _) in zip(found, paraphrases, strict=True)) / len(found),
                "irrelevant": sum(route >= 0 for route in matched),
                "said": sum(good) / len(good),
                "paraphrases_said": sum(again) / len(again),
                "answers": said,
            }
        )
        print({name: value for name, value in rows[-1].items() if name != "answers"}, flush=True)
    print(f"{taught}: {sum(one.steps for one in learned) / len(learned):.1f} steps", flush=True)
    memoir.detach()
if options.json:
    options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
