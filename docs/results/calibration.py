"""Whether the threshold that calibration chooses keeps its rate on prompts of kinds that played no part in its making.

Rows of a data set are stored as edits, masks only, nothing learned; tau is fitted to the package's 160 irrelevant
prompts, as `tau="auto"` does, and counted out on prompts of other kinds and on the edits' own paraphrases.

    python docs/results/calibration.py --data DIR --features FILE --json calibration.json --plot calibration.png
"""

import argparse
import json
import math
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from memoir_fast import Memoir, MemoirConfig
from memoir_fast.core.background import features, irrelevant_prompts
from memoir_fast.core.threshold import calibrate
from memoir_fast.hf.loading import load_model
from memoir_fast.io.readers import read_prompts

STORED = (16, 50, 100, 200, 400, 1000)
DRAWS = 3
RATE = 1e-3
STORES = {
    "ZsRE": ("zsre_train_1k.json", "src", "rephrase"),
    "CounterFact": ("counterfact_val.json", "prompt", "rephrase_prompt"),
}
_LOCALITY = ("zsre_train_1k", "hallucination_train", "temporal_train")
SEEN = "NQ questions, seen"  # the fit's quantiles were chosen with these in view
TEXT = "unseen questions and text"
UNSEEN = "these and prompts of the other data set"
OTHER = "prompts of the other data set"
SAME = "the data set's own prompts, not stored"


class Hashed(NamedTuple):
    """Prompts as masks int32 [N, W] and columns int32 [N, k]."""

    masks: torch.Tensor
    columns: torch.Tensor


def irrelevant_sources(data: Path) -> dict[str, list[str]]:
    """Prompts by kind that belong to no stored edit."""
    zsre, hallucination, temporal = (_rows(data / f"{name}.json") for name in _LOCALITY)
    return {
        "ZsRE loc": distinct(row["loc"] for row in zsre),
        "topics": distinct(row["prompt"] for row in temporal),
        "WikiText sentences": sentences((data / "wikitext2_valid.txt").read_text(encoding="utf-8"))[:500],
        "web text": distinct(row["locality_prompt"] for row in [*hallucination, *temporal]),
        SEEN: read_prompts(data / "nq_open_dev.jsonl")[-1000:],
    }


def sentences(text: str) -> list[str]:
    """Sentences of five words or more, in plain spelling, in which the corpus left out no word."""
    found = []
    for line in text.splitlines():
        if line.startswith(" ="):
            continue
        for sentence in re.sub(r" @(.)@ ", r"\1", line).split(" . "):
            words = sentence.removesuffix(" .").strip()
            if len(words.split()) >= 5 and "<unk>" not in words:
                found.append(re.sub(r" ([,;:)'])", r"\1", words).replace("( ", "(") + ".")
    return distinct(found)


def wilson(count: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share of `count` in `total`."""
    share, spread = count / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / total / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def stored_sources(data: Path) -> dict[str, list[str]]:
    """Prompts and paraphrases of the first 1,000 rows of each data set, and the prompts of its other rows."""
    found = {}
    for name, (file, prompt, paraphrase) in STORES.items():
        rows = list({row[prompt]: row for row in _rows(data / file)}.values())
        found[name] = [row[prompt] for row in rows[: STORED[-1]]]
        found[f"{name} paraphrases"] = [row[paraphrase] for row in rows[: STORED[-1]]]
        found[f"{name} others"] = [row[prompt] for row in rows[STORED[-1] :]]
    return {name: prompts for name, prompts in found.items() if prompts}


def _rows(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text(encoding="utf-8"))  # prompts alone are needed: an empty target does not matter


def collect(memoir: Memoir, groups: dict[str, list[str]], file: Path) -> dict[str, Hashed]:
    """Hashes every group; the features behind are kept in `file`, and taken from there."""
    kept = load_file(file) if file.exists() else {}
    layer, mu = memoir.layer, memoir.layer.mu
    for name, prompts in groups.items():
        if name not in kept:
            started = time.perf_counter()
            order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding
            ordered = [prompts[index] for index in order]
            kept[name] = torch.empty((len(prompts), layer.in_features))
            kept[name][order] = features(memoir.model, layer, memoir.tokenizer, ordered, torch.zeros_like(mu))
            save_file(kept, file)
            print(f"{name}: {len(prompts)} prompts, {time.perf_counter() - started:.0f} s", flush=True)
    return {name: Hashed(*layer.tophash.hash(kept[name] - mu)) for name in groups}


def count_out(
    memoir: Memoir, hashed: dict[str, Hashed], name: str, chosen: torch.Tensor, unrelated: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Stores the chosen rows of data set `name`, has tau chosen, and counts what matches."""
    store, k = memoir.layer.store, memoir.layer.k
    store.truncate(0)
    store.extend(hashed[name].masks[chosen])
    tau = calibrate(memoir, hashed["background"].masks, RATE, probe=False).tau
    store.set_min_overlap(math.ceil(tau * k - 1e-9))

    def matches(masks: torch.Tensor) -> torch.Tensor:
        return store.match(masks)[0]

    paraphrases, overlap = store.match(hashed[f"{name} paraphrases"].masks[chosen])
    needed = _least_for_rate(
        store.match(torch.cat([unrelated[kind] for kind in unrelated if kind not in (SEEN, SAME)]))[1]
    )
    return {
        "store": name,
        "edits": len(chosen),
        "tau": tau,
        "matched": {kind: [int((matches(masks) >= 0).sum()), len(masks)] for kind, masks in unrelated.items()},
        "paraphrases": float((paraphrases >= 0).double().mean()),
        "own": float((paraphrases == torch.arange(len(chosen))).double().mean()),
        "needed_tau": needed / k,
        "paraphrases_at_needed": float((overlap >= needed).double().mean()),
    }


def _least_for_rate(overlap: torch.Tensor) -> int:
    """The least overlap to ask for so that no more than the rate of these prompts, int32 [N], match."""
    return int(overlap.sort(descending=True).values[int(RATE * len(overlap))]) + 1


def study(memoir: Memoir, data: Path, file: Path) -> list[dict[str, Any]]:
    """For each data set and number of edits, what each of several random draws gave."""
    sources = irrelevant_sources(data)
    hashed = collect(memoir, {"background": irrelevant_prompts(), **stored_sources(data), **sources}, file)
    found = []
    for name in STORES:
        (other,) = (one for one in STORES if one != name)
        rows = len(hashed[name].masks)
        for edits in STORED:
            for draw in range(DRAWS if edits < rows else 1):
                order = torch.randperm(rows, generator=torch.Generator().manual_seed(draw))
                chosen, left = order[:edits], [hashed[name].masks[order[edits:]]]
                if f"{name} others" in hashed:
                    left.append(hashed[f"{name} others"].masks)
                unrelated = {kind: hashed[kind].masks for kind in sources}
                unrelated |= {OTHER: hashed[other].masks, SAME: torch.cat(left)}
                kept = {kind: masks for kind, masks in unrelated.items() if len(masks)}
                found.append({"draw": draw, **count_out(memoir, hashed, name, chosen, kept)})
    return found


def summarised(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Per number of edits, the means over draws; `matched` has (matches, prompts) by kind, and of all unseen ones."""
    rows = []
    for edits in STORED:
        draws = [one for one in found if (one["store"], one["edits"]) == (name, edits)]
        matched = {
            kind: (sum(one["matched"][kind][0] for one in draws) / len(draws), total)
            for kind, (_, total) in draws[0]["matched"].items()
        }
        for summary, left_out in ((TEXT, (SEEN, SAME, OTHER)), (UNSEEN, (SEEN, SAME, TEXT))):
            pairs = [pair for kind, pair in matched.items() if kind not in left_out]
            matched[summary] = (sum(count for count, _ in pairs), sum(total for _, total in pairs))
        keys = ("tau", "paraphrases", "own", "needed_tau", "paraphrases_at_needed")
        means = {key: sum(one[key] for one in draws) / len(draws) for key in keys}
        rows.append({"edits": edits, "matched": matched, **means})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table: matches per 1,000 prompts, with the 95 % interval of `wilson`, each prompt counted once."""
    last = [TEXT, OTHER, UNSEEN, SEEN, SAME]
    kinds = [*(kind for kind in rows[0]["matched"] if kind not in last), *last]
    lines = ["| | " + " | ".join(f"{row['edits']:,}" for row in rows) + " |", "| --- |" + " ---: |" * len(rows)]
    lines.append("| tau | " + " | ".join(f"{row['tau']:.3f}" for row in rows) + " |")
    for kind in kinds:
        cells = [_cell(*row["matched"][kind]) if kind in row["matched"] else "-" for row in rows]
        lines.append(f"| {kind} ({rows[0]['matched'][kind][1]:,}) | " + " | ".join(cells) + " |")
    unseen = f"{rows[0]['matched'][UNSEEN][1]:,}"
    lines.append(
        f"| tau for the rate on those {unseen} | " + " | ".join(f"{row['needed_tau']:.3f}" for row in rows) + " |"
    )
    shares = {
        "paraphrases": "paraphrases that match, %",
        "own": "that match their own edit, %",
        "paraphrases_at_needed": f"that match at the tau for those {unseen}, %",
    }
    for key, label in shares.items():
        lines.append(f"| {label} | " + " | ".join(f"{100 * row[key]:.1f}" for row in rows) + " |")
    return "\n".join(lines)


def _cell(count: float, total: int) -> str:
    low, high = wilson(count, total)
    return f"{1000 * count / total:.1f} ({1000 * low:.1f}-{1000 * high:.1f})"


def plot(found: list[dict[str, Any]], file: Path) -> None:
    """Matches per 1,000 against the number of edits, for each data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), STORES, strict=True):
        rows = summarised(found, name)
        for kind in (TEXT, OTHER, SEEN, SAME):
            points = [(row["edits"], row["matched"][kind]) for row in rows if kind in row["matched"]]
            rates = [1000 * count / total for _, (count, total) in points]
            bounds = [[1000 * side for side in wilson(*pair)] for _, pair in points]
            counts = [edits for edits, _ in points]
            (line,) = axes.plot(counts, rates, "o-", markersize=4, label=kind)
            axes.fill_between(counts, *zip(*bounds, strict=True), color=line.get_color(), alpha=0.12, linewidth=0)
        axes.axhline(1000 * RATE, color="black", linestyle="--", linewidth=1, label="asked for")
        axes.set(title=f"{name} edits", xlabel="edits", xscale="log")
        axes.set_xticks(STORED, [f"{edits:,}" for edits in STORED])
        axes.minorticks_off()
        axes.set_yscale("symlog", linthresh=1)
        axes.set_yticks([0, 1, 3, 10, 30, 100, 300], ["0", "1", "3", "10", "30", "100", "300"])
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("matches per 1,000 prompts")
    figure.savefig(file, dpi=130)


def distinct(prompts: Iterable[str]) -> list[str]:
    """In their order, each once."""
    return list(dict.fromkeys(prompts))


def main() -> None:
    """Reads the options, runs the study, and writes what they name."""
    parser = argparse.ArgumentParser(description="Matches of irrelevant prompts at the threshold that is chosen.")
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--features", type=Path, required=True, help="where the prompts' features are kept")
    parser.add_argument("--json", type=Path, help="write every draw's counts")
    parser.add_argument("--plot", type=Path, help="write the plot")
    options = parser.parse_args()
    torch.set_num_threads(1)
    memoir = Memoir.attach(*load_model("smollm2", "float32", "cpu"), MemoirConfig(routing="paper"))
    found = study(memoir, options.data, options.features)
    for name in STORES:
        print(f"\n## {name}\n\n{markdown(summarised(found, name))}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
