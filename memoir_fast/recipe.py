"""`Recipe`: the settings by which one edit is learned."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """How the columns of one edit are learned; the loss is the mean over the edit's rows.

    Example:
        >>> import dataclasses
        >>> from memoir_fast.recipe import RECIPES
        >>> dataclasses.replace(RECIPES["paper"], steps=70).steps
        70
    """

    method: str
    """The procedure: "paper" (the published loop) or "fast" (the same loss, on the upper layers alone)."""

    steps: int
    """Most gradient steps per edit."""

    learning_rate: float
    """By Adam, each of several layers moves by its share of it."""

    bar: float = 0.02
    """The loss threshold. Above it, an edit is reported as not learned; at or below it, learning may stop early."""

    enough: float | None = None
    """The loss at or below which learning may stop early, where that is less than `bar`: wordings that are not among
    the edit's rows gain from it."""

    optimizer: str = "sgd"
    """ "sgd", or (fast only) "adam"."""

    damping: float = 0.0
    """How much a step is held back where earlier edits read (Adam only); 0: not at all. See `editing.interference`."""

    prefixes: int = 10
    """Rows in which the prompt stands after a prefix, besides the plain prompt."""

    rewordings: int = 0
    """Rows in which the prompt's words are scrambled, besides; what paraphrases gain from. See `editing.wordings`."""

    questions: int = 0
    """Rows in which a prompt that is no question is scrambled and ends in a question mark, besides."""

    tokens: int | None = None
    """Further rows are left out where they would make the edit's rows longer than this together; None: never."""

    stop: bool = False
    """Teach the model to end its answer after the target; else what it says then is the memory's, often the target
    over and over. A tokenizer without an end token has no such thing."""

    rest: bool = False
    """The memory rests once the target has been said: what comes then is the unedited model's, given what was said."""

    chat: bool = False
    """A row in the tokenizer's chat template too, where it has one, or plainly where the prompt is in the template; and
    with `prefixes` one with a prefix as the chat's system prompt, where the template takes one."""

    quiet: int = 0
    """At most so many prompts that match the edit though they are none of its wordings, as rows that shall be answered
    as by the unedited model (fast only); a `keep` of the edit always is one."""

    quiet_bar: float = 0.5
    """Learning does not stop early where those answers, or what follows the target, are further than this from the
    unedited model's: the mean Kullback-Leibler divergence, in nats."""

    boundary: bool = False
    """What comes after the target shall be what the unedited model says there, and begin a new word where the target
    ends in a letter or digit (fast only)."""

    batch: int | str = 1
    """Edits learned together as one joint problem (fast only); "auto": as many as free memory allows, at most 16."""

    settled: float | None = None
    """Learning stops early only where the loss also changed by at most this in the last step; None: by any."""

    clip: float | None = None
    """Largest norm of an edit's gradient."""

    weight_decay: float = 0.0
    """Decay of the whole residual memory at every step: it erodes old edits; only the published loop has it."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0 or self.bar < 0 or self.weight_decay < 0:
            raise ValueError(
                "a recipe needs steps >= 1, learning_rate > 0, bar >= 0 and weight_decay >= 0, got "
                f"{self.steps}, {self.learning_rate}, {self.bar}, {self.weight_decay}"
            )
        if self.enough is not None and self.enough < 0:
            raise ValueError(f"enough must be at least 0 or None, got {self.enough}")
        if self.quiet < 0 or self.quiet_bar < 0:
            raise ValueError(f"quiet and quiet_bar must be at least 0, got {self.quiet} and {self.quiet_bar}")
        if self.method not in ("paper", "fast") or self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"method is paper or fast, optimizer sgd or adam, got {self.method!r}, {self.optimizer!r}")
        if self.method == "paper" and (self.optimizer != "sgd" or self.batch != 1):
            raise ValueError("the published loop is SGD on one edit at a time; method='fast' has other ways")
        if self.damping < 0 or (self.damping and self.optimizer != "adam"):
            raise ValueError(f"damping must be at least 0, and 0 without adam, got {self.damping}")
        if self.method == "fast" and self.weight_decay:
            raise ValueError("weight decay erodes old edits; only method='paper' has it")
        if min(self.prefixes, self.rewordings, self.questions) < 0 or (
            self.batch != "auto" and (isinstance(self.batch, str) or self.batch < 1)
        ):
            raise ValueError(
                "a recipe needs prefixes >= 0, rewordings >= 0 and batch >= 1 or 'auto', got "
                f"{self.prefixes}, {self.rewordings}, {self.batch!r}"
            )
        for name in ("clip", "tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive or None, got {value}")

    def require_several_layers(self) -> None:
        """ValueError where edits cannot be learned in several layers by it."""
        if self.method == "fast" and self.optimizer == "sgd":
            raise ValueError(
                "several layers cannot be learned by SGD in its dual form, which takes a layer's inputs to be the same "
                "at every step: take optimizer='adam' or method='paper', or MemoirConfig(further=())"
            )


_FAST = Recipe(
    "fast",
    steps=60,
    learning_rate=0.03,
    optimizer="adam",
    prefixes=1,
    rewordings=2,
    questions=2,
    tokens=600,
    damping=1.0,
    rest=True,
    chat=True,
    boundary=True,
    enough=0.005,
)
RECIPES = {
    "paper": Recipe("paper", steps=30, learning_rate=1.0, clip=1.0, weight_decay=1e-5, settled=1e-4),
    "fast": _FAST,
    "fast-stop": replace(_FAST, stop=True, rest=False, boundary=False),
}
