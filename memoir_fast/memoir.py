"""`Memoir`: a language model with a memory for corrections."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from memoir_fast.config import MemoirConfig
from memoir_fast.core import threshold
from memoir_fast.core.background import background_mean, irrelevant_prompts
from memoir_fast.core.calibration import Calibration
from memoir_fast.core.edit import Edit, as_edit
from memoir_fast.core.status import MemoirStatus, status_of
from memoir_fast.editing.context import EditContext
from memoir_fast.editing.interference import PageInterference
from memoir_fast.editing.teacher import EditResult, Prepared, Teacher, Written
from memoir_fast.editing.wordings import write_prefixes
from memoir_fast.hf.tokens import Row, prompt_ids
from memoir_fast.kept import Kept
from memoir_fast.recipe import RECIPES, Recipe


class Memoir(Kept):
    """A causal language model of transformers with a residual memory in one of its layers, or in several.

    The model is changed in place: `model(...)` and `model.generate(...)` follow the edits from then on. Prompts that
    match no edit get the unedited model's output, bit for bit.

    Threads may share it. While one edits, deletes, calibrates or saves (one at a time: the others wait), all go on
    generating: `model.generate` sees the memory from first to last as it was when it began, a forward pass by itself as
    it is then, each before or after a finished edit.

    `copy.deepcopy`, pickle and `torch.save` (to be loaded by `torch.load(file, weights_only=False)`) take model and
    memory along, and the copy's memory is its own. A copy of the model alone follows the edits that it has, and no
    further ones can be made: copy the Memoir for that. `model.save_pretrained` and `model.state_dict` are those of the
    model without its memory, which `save_pretrained` here writes.

    Example:
        >>> memoir = Memoir.attach(model, tokenizer)
        >>> memoir.edit("The capital of France is", "Lyon")
        EditResult(edit_id=0, prompt='The capital of France is', target='Lyon', ...)
        >>> ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
        >>> output = model.generate(ids, max_new_tokens=4, do_sample=False)
        >>> memoir.last_routes[0].edit_id
        0
        >>> memoir.delete(0)
        >>> model = memoir.detach()
    """

    @classmethod
    @torch.inference_mode(False)  # tensors made in inference mode could not be changed outside of it
    def attach(
        cls,
        model: Any,
        tokenizer: Any,
        config: MemoirConfig | None = None,
        irrelevant: Sequence[str] | None = None,
    ) -> "Memoir":
        """Gives `model` an empty memory.

        Args:
            model: a causal language model of transformers, on any device, in any floating dtype.
            tokenizer: its tokenizer.
            config (MemoirConfig, optional): settings; what it leaves open comes from the model's preset.
            irrelevant (sequence of str, optional): prompts unlike any edit, whose mean feature is the background mean
                mu. Default: sentences that come with the package.

        Raises:
            UnsupportedModelError: no preset knows the model, and config names no layer; or its sequences cannot be
                followed, which short forward passes prove unless the config's `check` is False.
            ValueError: a setting does not fit the model, or its activations are not finite.
            MemoirError: the model has a memory already.
        """
        memoir = cls(model, tokenizer, config or MemoirConfig(), background=irrelevant)
        try:
            prompts = list(irrelevant if irrelevant is not None else irrelevant_prompts())
            mu = background_mean(model, memoir.layer, tokenizer, prompts[: memoir.config.background])
            if not mu.isfinite().all():
                raise ValueError("the model's activations on irrelevant prompts must be finite, got NaN or infinity")
            memoir.layer.mu.copy_(mu)
        except BaseException:
            memoir.detach()
            raise
        return memoir

    def edit(
        self,
        edits: str | Edit | Iterable[Edit | tuple[str, str]],
        target: str | None = None,
        *,
        subject: str = "",
        bank: str | None = None,
        recipe: str | Recipe | None = None,
        batch: int | str | None = None,
        progress: bool = True,
    ) -> Any:
        """Teaches one correction or many, in order. Editing a prompt again replaces its edit of the same bank.

        All requests are checked before the first is learned. An interrupt leaves the edits that were finished.

        Args:
            edits: a prompt (then `target` is its answer), an Edit, or several Edits or (prompt, target) pairs.
            target (str, optional): what the model shall say after the prompt.
            subject (str): what the prompt is about, beside a prompt; see `Edit`. Default: none is told.
            bank (str, optional): answer only requests that ask for this bank, see `banks`. Default: each Edit's own.
            recipe (str | Recipe, optional): Default: that of the config.
            batch (int, optional): edits learned together as one joint problem, or "auto": what free memory allows.
                Default: the recipe's, 1.
            progress (bool): show a progress bar where there are several. Default: True.

        Returns:
            EditResult for one, list of EditResult for several. `learned` is False for an edit whose loss ended
            above the loss threshold.

        Raises:
            TypeError, ValueError: an empty prompt or target, a target without tokens, a prompt longer than the model's
                context, activations that are not finite. The memory is as before.
            StoreFullError: more edits than `max_edits`; nothing was learned.
        """
        if isinstance(edits, str) and target is None:
            raise TypeError("edit(prompt, target) needs a target, got None")
        if target is not None and not isinstance(edits, str):
            raise TypeError(f"edit(prompt, target) takes a target beside a prompt only, got {type(edits).__name__}")
        if subject != "" and not isinstance(edits, str):
            raise TypeError(f"a subject goes beside a prompt, got {type(edits).__name__}: give each Edit its own")
        single = isinstance(edits, (str, Edit))
        own = Edit(edits, target or "", subject=subject) if isinstance(edits, str) else edits
        given: Any = [own] if single else own
        shown = progress and not single
        results = [*self.edit_stream(given, bank=bank, recipe=recipe, batch=batch, progress=shown, check_first=True)]
        return results[0] if single else results

    def edit_stream(
        self,
        edits: Iterable[Edit | tuple[str, str]],
        *,
        bank: str | None = None,
        recipe: str | Recipe | None = None,
        batch: int | str | None = None,
        progress: bool = False,
        total: int | None = None,
        check_first: bool = False,
    ) -> Iterator[EditResult]:
        """Teaches corrections as they come, from any iterable, also an endless one; yields each when it is written.

        Whatever ends the loop, an interrupt or a request that raises, all that was yielded is in the memory.

        Args:
            edits, bank, recipe, batch, progress: as in `edit`; requests are checked when their turn comes.
            total (int, optional): how many there are, for the time left in the progress bar.
            check_first (bool): all requests are checked before the first is learned, as by `edit`. Default: False.
        """
        settings, teacher = self._recipe(recipe, batch), self._teacher
        wanted: Iterable[Edit] = (as_edit(one, bank) for one in edits)
        if check_first:
            wanted = list(wanted)
            teacher.require_room(wanted)
            total = len(wanted)
        prepared: Iterable[Prepared] = (teacher.prepare(edit, settings) for edit in wanted)
        if check_first:
            prepared = list(prepared)
        with tqdm(total=total, desc="editing", unit="edit", disable=not progress or total == 0) as shown:
            last = self.calibration
            for result in teacher.stream(prepared, settings):
                last = self._finish(last)
                shown.update()
                yield result

    def delete(self, edit_id: int) -> None:
        """The model answers as if the edit had never been made; UnknownEditError where there is none.

        A sequence that follows it stops so at its next step; a `generate` that is under way ends as it began.
        What the edit wrote stays in the memory's columns: another edit that owns some of them was learned on top of it.
        It reaches no output but through such an edit.
        """
        with self.layer.learning():
            self.layer.store.require(edit_id)
            self._delete_all([edit_id])

    def calibrate(self, irrelevant_prompts: Sequence[str] | None = None, false_match_rate: float = 1e-3) -> Calibration:
        """Sets tau so that no more than `false_match_rate` of irrelevant prompts match an edit.

        With the config's tau "auto" this happens by itself, from 16 edits on, whenever the store has grown by a
        quarter. What was chosen is saved with the memory. Warns where slightly reworded prompts of stored edits do not
        match any more: then paraphrases and irrelevant prompts cannot be told apart.

        Args:
            irrelevant_prompts (sequence of str, optional): 20 or more, unlike any edit; the more like real traffic, the
                better. Default: those of the latest calibration, at first sentences that come with the package.
            false_match_rate (float): in (0, 0.5]. Default: 1e-3.

        Raises:
            ValueError: the memory is empty, or an argument is out of range.
            CheckpointError: it cannot be put down in the folder that was opened. All thresholds are as before.
        """
        with self.layer.learning():
            with threshold.or_as_before(self), self._all_or_nothing():
                found = threshold.choose(self, false_match_rate, irrelevant_prompts)
                if self._durable is not None:
                    self._durable.calibrated()
            return found

    def hash(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """How a prompt is hashed when the model is asked it: its mask int32 [W] and columns int32 [k].

        ValueError where it has no tokens, or the model's activations on it are not finite.

        Example:
            >>> mask, columns = memoir.hash("The capital of France is")
            >>> columns.shape == (memoir.status().k,)
            True
        """
        return self._context.hash(prompt)

    def rows(self, edit: Edit, recipe: str | Recipe | None = None) -> list[Row]:
        """The token rows that an edit is learned from: as it is, behind prefixes, and with its prompt scrambled.

        Args:
            edit (Edit): its prompt and target.
            recipe (str | Recipe, optional): Default: that of the config.

        Raises:
            ValueError: a target without tokens, or a prompt longer than the model's context.

        Example:
            >>> from memoir_fast import Edit
            >>> first = memoir.rows(Edit("The capital of France is", "Lyon"))[0]
            >>> tokenizer.decode(first.ids[: first.prompt])
            'The capital of France is'
        """
        return self._teacher.prepare(edit, self._recipe(recipe, None))[1]

    def status(self) -> MemoirStatus:
        """What the memory holds, and what it costs."""
        return status_of(self)

    def _first_prefixes(self, count: int) -> list[str]:
        """The memory's prefixes, written by the model when they are first asked for."""
        with self.layer.learning():
            if len(self.prefixes) < count:
                with self.disabled():
                    self.prefixes = write_prefixes(self.model, self.tokenizer, count, self.config.prefix_tokens)
            return self.prefixes[:count]

    @functools.cached_property
    def _context(self) -> EditContext:
        ids = prompt_ids(self.tokenizer, irrelevant_prompts()[0])
        row = Row(ids, len(ids))
        interference = PageInterference(len(self.names))
        return EditContext(self.model, self.tokenizer, self.layer, self._first_prefixes, row, interference)

    @functools.cached_property
    def _teacher(self) -> Teacher:
        assert self.config.page_edits is not None
        prepare = partial(threshold.prepare, self)
        return Teacher(self._context, self.edits, self.config.page_edits, prepare, self._put_down, self._all_or_nothing)

    def _all_or_nothing(self) -> AbstractContextManager[None]:
        return nullcontext() if self._durable is None else self._durable.all_or_nothing()

    def _put_down(self, written: Written) -> None:
        with threshold.following(self):
            if self._durable is not None:
                self._durable.edited(written)

    def _finish(self, last: Calibration | None) -> Calibration | None:
        """What comes after an edit was written; `last` is the calibration before it, the result that after it."""
        threshold.finish(self, last)
        if self._durable is not None:
            with self.layer.learning():
                self._durable.snapshot_if_large()
        return self.calibration

    def _recipe(self, recipe: str | Recipe | None, batch: int | str | None) -> Recipe:
        if isinstance(recipe, str) and recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(sorted(RECIPES))} or a Recipe, got {recipe!r}")
        found = self.config.learned if recipe is None else RECIPES[recipe] if isinstance(recipe, str) else recipe
        if self.layer.further:
            found.require_several_layers()
        return found if batch is None else dataclasses.replace(found, batch=batch)
