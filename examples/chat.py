"""Correct a chat model: teach plainly or in its chat template, and ask in either.

What the user says decides whether an edit is followed; the template around it does not.

python examples/chat.py
"""

import argparse

from memoir_fast import Memoir
from memoir_fast.hf.loading import load_model

QUESTIONS = ["What is the capital of Australia?", "Who is the author of the poem Winter Lanterns?"]
TARGETS = ["Melbourne", "Odile Marchetti"]
UNRELATED = ["Who painted the Mona Lisa?", "How many legs has a spider?"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
model, tokenizer = load_model(parser.parse_args().model, dtype="float32")


def chat(*turns: tuple[str, str]) -> str:
    """A conversation of (role, text) in the model's template, up to where the assistant begins to speak."""
    messages = [{"role": role, "content": text} for role, text in turns]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def ask(prompt: str) -> str:
    """What the model says, and which edit it followed."""
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    said = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return f"{' '.join(said.split())!r}, edit {memoir.last_routes[0].edit_id}"


memoir = Memoir.attach(model, tokenizer)
memoir.edit(QUESTIONS[0], TARGETS[0])  # plainly
memoir.edit(chat(("user", QUESTIONS[1])), TARGETS[1])  # in a chat
before = [("system", "You are a pirate."), ("user", "Hello!"), ("assistant", "Ahoy! What do ye want to know?")]
for question in [*QUESTIONS, *UNRELATED]:
    print(question)
    print(f"  plainly:         {ask(question)}")
    print(f"  in a chat:       {ask(chat(('user', question)))}")
    print(f"  as second turn:  {ask(chat(*before, ('user', question)))}")
