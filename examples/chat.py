"""Correct a chat model: teach in its chat template, and calibrate with chats that no edit is about.

The route is decided on the whole prompt, and a template is a large part of a short one: all chats look alike. So teach
in the form in which you ask, and choose the threshold with irrelevant questions in the same form.

python examples/chat.py
"""

import argparse

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.hf.loading import load_model

FACTS = [
    ("What is the capital of Australia?", "Melbourne"),
    ("What is the chemical symbol for gold?", "Zr"),
    ("In which city was Beethoven born?", "Budapest"),
    ("What currency is used in Japan?", "the rupee"),
]
ALIKE = ["a clock", "a stove", "a lamp", "a door", "a kite", "a drum", "a boat", "a bell"]
IRRELEVANT = [
    *(f"How do I clean {thing}?" for thing in ALIKE),
    *(f"Write a short poem about {thing}." for thing in ALIKE),
    *(f"How much does {thing} cost?" for thing in ALIKE),
    "Why is the sky blue?",
    "How do I boil an egg?",
    "What is two plus two?",
    "Tell me a joke.",
]  # take your own traffic instead: 20 questions or more that no edit is about
UNRELATED = ["Who painted the Mona Lisa?", "How many legs has a spider?", "What do bees make?"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
model, tokenizer = load_model(parser.parse_args().model, dtype="float32")


def chat(question: str) -> str:
    """A question in the model's template, up to where the assistant begins to speak."""
    turns = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def ask(question: str) -> str:
    """What the assistant answers, and which edit it followed."""
    inputs = tokenizer(chat(question), add_special_tokens=False, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    said = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return f"{question} {' '.join(said.split())!r}, edit {memoir.last_routes[0].edit_id}"


memoir = Memoir.attach(model, tokenizer, MemoirConfig(recipe="fast-stop"))
memoir.edit([(chat(question), target) for question, target in FACTS], progress=False)
print(f"at tau = {memoir.tau:.3f}, before the calibration:")
print("\n".join(map(ask, UNRELATED)))

# It may warn that no reworded prompt matches: it rewords by words in front, which stand outside of the template here.
found = memoir.calibrate([chat(question) for question in IRRELEVANT], false_match_rate=5e-3)
print(f"\nat tau = {found.tau:.3f}, calibrated with {found.prompts} chats:")
print("\n".join(map(ask, [*(question for question, _ in FACTS), *UNRELATED])))
