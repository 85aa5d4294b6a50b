"""The facts and questions that come with the package, for the demo and for benchmarks."""

from pathlib import Path
from typing import NamedTuple

from memoir_fast.io.json_stream import objects


class Fact(NamedTuple):
    """One of the package's own counterfactual facts: `truth` is what a model should have known."""

    subject: str
    prompt: str
    target: str
    truth: str
    paraphrases: list[str]
    freer: str = ""
    """The question as another might ask it, in words of their own; "" for most facts."""
    neighbour: str = ""
    """The same about another subject, of which nothing is taught; "" for most facts."""
    kept: bool = False
    """Whether the neighbour is named in the `keep` of the edit."""


def facts() -> list[Fact]:
    """The package's counterfactual facts."""
    return [Fact(**values) for _, values in objects(_packaged("facts.jsonl"))]


def unrelated() -> list[tuple[str, str]]:
    """The package's (question, answer) pairs that have nothing to do with its facts."""
    return [(values["prompt"], values["answer"]) for _, values in objects(_packaged("unrelated.jsonl"))]


def _packaged(name: str) -> Path:
    return Path(__file__).parents[1] / "data" / name
