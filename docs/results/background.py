"""How many background prompts a routing code needs: what is found, and what matches by mistake, with ever fewer.

Edits are stored as codes with their thresholds; nothing is learned. Per number of background prompts: how many
paraphrases are routed to their own edit, neighbours to any, and questions that no edit is about to any.

    python docs/results/background.py --zsre zsre_edit_first200.json --counterfact counterfact_val.json --questions NQ
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from codes_alone import routes, store

from memoir_fast import Memoir
from memoir_fast.core.background import irrelevant_prompts
from memoir_fast.hf.loading import load_model
from memoir_fast.io.readers import Case, read_cases, read_prompts

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2", help="a hub id, a local folder, or smollm2")
parser.add_argument("--zsre", type=Path, required=True, help="the first row of each subject is stored")
parser.add_argument("--counterfact", type=Path, required=True, help="the last 500 rows are stored")
parser.add_argument("--questions", type=Path, required=True, help="the last 1,000 are asked, the first are background")
parser.add_argument("--package", type=int, nargs="*", default=[40, 80, 160], help="so many prompts of the package")
parser.add_argument("--others", type=int, nargs="*", default=[160, 1000], help="so many of the questions instead")
parser.add_argument("--subjects", action="store_true", help="edits are told their subjects, which the rows have")
options = parser.parse_args()
model, tokenizer = load_model(options.model, dtype="float32")


def own_share(memoir: Memoir, cases: Sequence[Case]) -> float:
    """How many first paraphrases are routed to their own edit."""
    found = routes(memoir, [case.paraphrases[0] for case in cases])
    ids = {one.prompt: edit_id for edit_id, one in memoir.edits.items()}
    return sum(ids[case.prompt] == route for case, route in zip(cases, found, strict=True)) / len(found)


zsre = list({case.subject: case for case in reversed(list(read_cases(options.zsre, unusable=[])))}.values())[::-1]
counterfact = list(read_cases(options.counterfact, unusable=[]))[-500:]
questions = read_prompts(options.questions)
asked, given = questions[-1000:], questions[:2000]
print("| background | block | ZsRE own | false | CounterFact own | neighbours | false |", "|" + " --- |" * 7, sep="\n")
for name, background in [
    *((f"{n} of the package's", irrelevant_prompts()[:n]) for n in options.package),
    *((f"{n} questions", given[:: len(given) // n][:n]) for n in options.others),
]:
    cells = []
    for cases in (zsre, counterfact):
        told = cases if options.subjects else [dataclasses.replace(one, subject=None) for one in cases]
        memoir = Memoir.attach(model, tokenizer, irrelevant=background)
        store(memoir, [one.edit for one in told])
        cells.append(f"{own_share(memoir, cases):.3f}")
        if cases is counterfact:
            near = [prompt for case in cases for prompt, _ in case.locality]
            cells.append(f"{sum(one >= 0 for one in routes(memoir, near)) / len(near):.3f}")
        cells.append(str(sum(one >= 0 for one in routes(memoir, asked))))
        block = memoir.layer.code.block
        memoir.detach()
    print(f"| {name} | {block} | {' | '.join(cells)} |", flush=True)
