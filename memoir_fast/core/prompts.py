"""`Prompts`: the prompts of some of many edits, none of which is looked at before it is asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import overload

import torch

from memoir_fast.core.edit import Edit


class Prompts(Sequence[str]):
    """The prompts of chosen edits, in the order of their ids.

    Args:
        edits (mapping of int to Edit): which change no more as long as this is used.
        chosen (Tensor): bool [rows], True for ids of `edits` alone; on the host.
        find (callable): the ids of the edits of a prompt, chosen or not.

    Example:
        >>> import torch
        >>> from memoir_fast import Edit
        >>> from memoir_fast.core.prompts import Prompts
        >>> edits = {0: Edit("Who?", "I"), 1: Edit("Where?", "Here"), 2: Edit("When?", "Now")}
        >>> ids = {edit.prompt: [edit_id] for edit_id, edit in edits.items()}
        >>> prompts = Prompts(edits, torch.tensor([True, False, True]), lambda prompt: ids.get(prompt, []))
        >>> len(prompts), prompts[1], "Where?" in prompts
        (2, 'When?', False)
    """

    def __init__(self, edits: Mapping[int, Edit], chosen: torch.Tensor, find: Callable[[str], Iterable[int]]) -> None:
        self._edits, self._chosen, self._find = edits, chosen, find
        self._ids = chosen.nonzero().flatten()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, prompt: object) -> bool:
        return isinstance(prompt, str) and any(self._chosen[one] for one in self._find(prompt))

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self._edits[one].prompt for one in self._ids[place].tolist()]
        return self._edits[int(self._ids[place])].prompt
