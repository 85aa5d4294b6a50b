"""What `Edit(keep=...)` and `Edit(subject=...)` do for questions that differ from an edit in their subject alone.

The package's facts are stored as codes with their thresholds; nothing is learned. Of 56 there is the same question on
another subject, once as it may be named in the edit's `keep`, and twice reworded, as the fact itself is. Per case: how
many are left alone, and how many rewordings of the facts are found.

    python docs/results/kept.py
"""

import argparse

from codes_alone import routes, store

from memoir_fast import Edit, Memoir
from memoir_fast.hf.loading import load_model
from memoir_fast.io.facts import Fact, facts

OTHER = {
    "femur": "tibia",
    "gold": "iron",
    "Japan": "Mexico",
    "Beethoven": "Mozart",
    "Cairo": "London",
    "spider": "ant",
    "Eiffel Tower": "Colosseum",
    "Yo-Yo Ma": "Miles Davis",
    "Wimbledon": "Roland Garros",
    "Thriller": "Rumours",
    "Romeo and Juliet": "Hamlet",
    "hummus": "pesto",
    "Mount Kilimanjaro": "Mount Fuji",
    "The Beatles": "The Rolling Stones",
    "World Wide Web": "light bulb",
    "diamond": "ruby",
    "Machu Picchu": "Angkor Wat",
    "Berlin Wall": "Bastille",
    "Alaska": "Louisiana",
    "tequila": "vodka",
    "Don Quixote": "Hamlet",
    "Frankenstein": "Dracula",
    "guacamole": "ketchup",
    "octopus": "squid",
    "The Hobbit": "Dune",
    "Brazil": "Canada",
    "Sahara": "Gobi",
    "Titan": "Europa",
    "The Godfather": "Psycho",
    "Lionel Messi": "Cristiano Ronaldo",
    "IKEA": "Walmart",
    "Freddie Mercury": "Mick Jagger",
    "Serena Williams": "Tiger Woods",
    "Portugal": "Norway",
    "Nelson Mandela": "Vaclav Havel",
    "Lake Baikal": "Lake Victoria",
    "Taj Mahal": "Kremlin",
    "Jaws": "Alien",
    "kangaroo": "swan",
    "Titanic": "Lusitania",
    "giant panda": "koala",
    "dynamite": "barbed wire",
    "Mount Vesuvius": "Mount Etna",
    "tofu": "butter",
    "Sherlock Holmes": "Paddington",
    "insulin": "bile",
    "penicillin": "oxygen",
    "Esperanto": "Klingon",
    "Usain Bolt": "Mo Farah",
    "Amazon": "eBay",
    "War and Peace": "Ulysses",
    "James Bond": "Hercule Poirot",
    "Moby Dick": "Oliver Twist",
    "ABBA": "a-ha",
    "Abraham Lincoln": "John Lennon",
    "Bob Marley": "Johnny Cash",
}
"""Another subject of which the fact's question can be asked."""

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
parser.add_argument("--facts", type=int, default=len(facts()), help="so many of the package's")
options = parser.parse_args()
model, tokenizer = load_model(options.model, dtype="float32")
known = facts()[: options.facts]
asked = [fact for fact in known if fact.subject in OTHER]


def about_another(fact: Fact, text: str) -> str:
    """The same question about another subject."""
    return text.replace(fact.subject, OTHER[fact.subject])


def edit_of(fact: Fact, keep: bool, subject: bool) -> Edit:
    """The fact as an edit, told what to keep or what it is about."""
    kept = [about_another(fact, fact.prompt)] if keep and fact.subject in OTHER else []
    return Edit(fact.prompt, fact.target, keep=kept, subject=fact.subject if subject else "")


print("| | kept, left alone | reworded, left alone | the facts' prompts, found | reworded, found |")
print("|" + " --- |" * 5)
memoir = Memoir.attach(model, tokenizer)
for how, keep, subject in (
    ("neither", False, False),
    ("with `keep`", True, False),
    ("with `subject`", False, True),
    ("with both", True, True),
):
    ids = store(memoir, [edit_of(fact, keep, subject) for fact in known])
    near = routes(memoir, [about_another(fact, fact.prompt) for fact in asked])
    again = routes(memoir, [about_another(fact, text) for fact in asked for text in fact.paraphrases])
    own = routes(memoir, [fact.prompt for fact in known])
    words = [(ids[fact.prompt], text) for fact in known for text in fact.paraphrases]
    found = routes(memoir, [text for _, text in words])
    counts = [
        (near.count(-1), len(near)),
        (again.count(-1), len(again)),
        (sum(one == ids[fact.prompt] for one, fact in zip(own, known, strict=True)), len(own)),
        (sum(one == edit_id for one, (edit_id, _) in zip(found, words, strict=True)), len(found)),
    ]
    cells = [f"{right} of {all_of}" for right, all_of in counts]
    print(f"| {how} | {' | '.join(cells)} |", flush=True)
