"""What a row of docs/support.md is checked by; the tests run the same.

A check that fails raises AssertionError. What the package refuses is told from it by its error.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import architectures
import support_more
import torch
from architectures import ARCHITECTURES, IMAGE
from torch.nn.functional import cross_entropy

from memoir_fast import RECIPES, Memoir, MemoirConfig
from memoir_fast.core.background import irrelevant_prompts
from memoir_fast.errors import UnsupportedModelError
from memoir_fast.hf.presets import PRESETS

ROWS = tuple(ARCHITECTURES)
MORE = ("beams", "static cache", "two layers", "compile")
FEATURES = ("attach", "edit", "generate", "padded batch", "unmatched prompt", "save, load", "delete, detach")

EDITS = (("The capital of France is", "Rome"), ("Which animal lives in the desert?", "the language"))
OTHERS = ("In which country is the mountain?", "The river runs through the old town. What is the colour of the sky?")
TOKENS = 4
TAU = 0.9  # a random model's prompts are all alike
RECIPE = dataclasses.replace(
    RECIPES["fast"],
    steps=12,
    learning_rate=0.05,
    prefixes=0,
    rewordings=0,
    questions=0,
    quiet=0,
    rest=False,
    boundary=False,
)


class Row(NamedTuple):
    """What was found of an architecture."""

    name: str
    kind: str
    layer: str
    """The layer that was edited; of a refused one, what was asked for, if anything."""
    refused: str | None = None
    """The error at attach; None: every feature works."""
    more: tuple[str, ...] = ()
    """What stands in the columns of MORE, as far as they were run."""


@functools.cache
def tokenizer() -> Any:
    """`architectures.tokenizer`, made once."""
    return architectures.tokenizer()


def row(name: str, compiled: bool = False) -> Row:
    """Runs the checks of an architecture: routed by codes, in the default layer, and by masks, in the block before.

    `compiled`: the last column too, which takes seconds.
    """
    one = ARCHITECTURES[name]
    make = functools.partial(architectures.build, one.kind, one.sizes)
    check = Check(make(), one.kind, one.images)
    ways: tuple[Callable[..., str], ...] = (support_more.beams, support_more.static_cache)
    ways += (functools.partial(support_more.two_layers, make=make),)
    ways += (functools.partial(support_more.compiled, make=make),) * compiled
    try:
        layer = check.run(MemoirConfig(layer=one.layer, recipe=RECIPE, tau=TAU), make, ways)
    except UnsupportedModelError as error:
        return Row(name, one.kind, one.layer or "", f"{type(error).__name__}: {error}")
    if not one.images:  # a mask is made of all tokens of a prompt, and those of an image are none of its edit's
        names = dict(check.model.named_modules())
        earlier = one.layer or next(path for path in PRESETS[one.kind].paths(2) if path in names)
        check.run(MemoirConfig(layer=earlier, recipe=RECIPE, routing="paper", tau=TAU))
    return Row(name, one.kind, layer, more=tuple(check.more))


class Check:
    """What a memory does on a model that has none.

    Args:
        model: the model.
        kind (str): its model type.
        images (bool): prompts hold an image.
    """

    def __init__(self, model: Any, kind: str, images: bool = False) -> None:
        self.model, self.kind, self.images = model, kind, images
        self.attached = False
        """Whether a memory could be put on."""
        self.more: list[str] = []
        """What was found by further ways to run it."""
        image = IMAGE if images else ""
        self.prompts = [*(prompt + image for prompt, _ in EDITS), *(image + prompt for prompt in OTHERS)]
        self.before = self.logits(model)
        self.said = [said(model, self.inputs([prompt]))[0] for prompt in self.prompts]

    def run(
        self,
        config: MemoirConfig,
        make: Callable[[], Any] | None = None,
        ways: Sequence[Callable[["Check", Memoir], str]] = (),
    ) -> str:
        """Attaches, edits, generates, saves, loads, deletes and detaches.

        Args:
            config (MemoirConfig): of the memory.
            make (callable, optional): makes the model again, and a saved memory is loaded into it. Default: none is.
            ways (sequence of callables): further ways to run the edited model, of `support_more`.

        Returns:
            str: the edited layer's name.

        Raises:
            UnsupportedModelError: what `attach` raises.
        """
        model, before = self.model, self.before
        try:
            memoir = Memoir.attach(model, tokenizer(), config, irrelevant_prompts()[:40])
        except UnsupportedModelError:
            require(same(self.logits(model), before), "a refused model is as it was")
            raise
        self.attached = True
        try:
            self.edit(memoir)
        except UnsupportedModelError:
            require(not memoir.edits and same(self.logits(model), before), "a refused edit leaves nothing")
            raise
        self.generate(memoir)
        self.more += [way(self, memoir) for way in ways]
        now = self.logits(model)
        require(same(now[2:], before[2:]), "unmatched prompts have the unedited model's bits")
        require(not any(map(torch.equal, now[:2], before)), "matched prompts follow their edits")
        if make is not None:
            self.load(memoir, make(), now)
        for edit_id in list(memoir.edits):
            memoir.delete(edit_id)
        require(same(self.logits(model), before), "deleted edits leave nothing")
        memoir.detach()
        require(same(self.logits(model), before), "a model whose memory was taken off is as it was")
        assert memoir.config.layer is not None
        return memoir.config.layer

    def edit(self, memoir: Memoir) -> None:
        """Teaches; the loss that learning ends at, which runs parts of the model, is the whole model's."""
        for (prompt, _), result in zip(EDITS, memoir.edit_stream(EDITS), strict=True):
            (row,) = memoir.rows(memoir.edits[result.edit_id])
            ids = torch.tensor([row.ids])
            losses = []
            for edit_id in (-1, result.edit_id):
                with memoir.prompts(row.prompt), memoir.routed(edit_id), torch.no_grad():
                    logits = memoir.model(input_ids=ids).logits[0, row.prompt - 1 : -1].double()
                losses.append(float(cross_entropy(logits, ids[0, row.prompt :], reduction="sum")) / (1 + len(logits)))
            require(abs(losses[1] - result.loss) < 1e-3, f"{prompt!r}: {result.loss} was learned, {losses[1]} found")
            require(losses[1] < 0.9 * losses[0], f"{prompt!r}: the loss fell from {losses[0]} to {losses[1]} only")

    def generate(self, memoir: Memoir) -> None:
        """Generates alone and in a batch, with a cache and without."""
        routes = [0, 1, -1, -1]
        alone = []
        for prompt, route in zip(self.prompts, routes, strict=True):
            alone += said(memoir.model, self.inputs([prompt]))
            found = [one.edit_id for one in memoir.last_routes]
            require(found == [route], f"{prompt!r} follows {found}, not {route}")
        require(alone[2:] == self.said[2:], "what is said after unmatched prompts is as it was")
        require(alone[:2] != self.said[:2], "what is said after the edits' prompts is not")
        if not self.images:  # beside an image, Gemma 3 says other things without a cache, with a memory or not
            with memoir.routed(0):
                found = said(memoir.model, self.inputs(self.prompts[:1]), use_cache=False)[0]
            require(found == alone[0], "decode steps follow the edit as passes over all tokens do")
        given = self.inputs(self.prompts)
        require(bool((given["attention_mask"] == 0).any()), "the batch is padded")
        require(said(memoir.model, given) == alone, "a padded batch says what each of its rows says alone")
        found = [one.edit_id for one in memoir.last_routes]
        require(found == routes, f"the rows of a padded batch follow {found}, not {routes}")

    def load(self, memoir: Memoir, other: Any, logits: list[torch.Tensor]) -> None:
        """Saves the memory, and loads it beside another copy of the model."""
        with tempfile.TemporaryDirectory() as folder:
            memoir.save_pretrained(folder)
            Memoir.from_pretrained(other, tokenizer(), folder)
        require(same(self.logits(other), logits), "a loaded memory has the saved one's bits")

    def inputs(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """See `architectures.inputs`."""
        return architectures.inputs(self.kind, tokenizer(), prompts)

    @torch.no_grad()
    def logits(self, model: Any) -> list[torch.Tensor]:
        """Logits [1, S, V] of each prompt by itself."""
        return [model(**self.inputs([prompt])).logits for prompt in self.prompts]


def said(model: Any, given: dict[str, torch.Tensor], **options: Any) -> list[list[int]]:
    """The tokens that a model adds to each row, greedily."""
    with torch.no_grad():
        output = model.generate(**given, **options, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return output[:, given["input_ids"].shape[1] :].tolist()


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Whether all are equal to the last bit."""
    return all(map(torch.equal, left, right))


def require(holds: bool, what: str) -> None:
    """AssertionError where something does not hold; `assert` would be silent under -O."""
    if not holds:
        raise AssertionError(what)
