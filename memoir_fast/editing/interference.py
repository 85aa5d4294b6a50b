"""`Interference`: what the stored edits read from the edited layer's input, so that a new edit can leave it alone."""

import torch

_MOST_BYTES = 256 << 20  # of all pages' second moments that are kept
_ROWS_AT_ONCE = 256  # of moments: their places are 8 bytes a number


class Interference:
    """Second moments of one page's edits' inputs, each at the columns of its own edit: one matrix float32 [D, D].

    An edit that shares columns with others changes their outputs by what they read there. Its update dW is therefore
    damped where that is much: (I + M / lambda)^-1 dW, with M [k, k] the moments at its columns and lambda their mean
    diagonal over `damping`, is the closest change to dW that pays for what it does to the others.
    """

    def __init__(self) -> None:
        self._moments: torch.Tensor | None = None
        self._owners: torch.Tensor | None = None  # int32 [D], how many counted edits own a column

    def bytes_to_come(self, width: int) -> int:
        """Bytes that the first counted edit of `width` columns will take; 0 once there is one."""
        return 4 * width * width if self._moments is None else 0

    def add(self, width: int, columns: torch.Tensor, reads: torch.Tensor) -> None:
        """Counts an edit: its columns int32 [k] of `width`, and the inputs [tokens, k] there on its plain row.

        See `core.reads` for the type in which they come.
        """
        if self._moments is None:
            self._moments = torch.zeros((width, width), device=reads.device)
            self._owners = torch.zeros(width, dtype=torch.int32, device=reads.device)
        self._accumulate(columns, reads, 1)

    def remove(self, columns: torch.Tensor, reads: torch.Tensor) -> None:
        """Takes a counted edit out again; arguments as they were then."""
        self._accumulate(columns, reads, -1)
        assert self._moments is not None and self._owners is not None
        free = columns.long()[self._owners[columns.long()] == 0]
        self._moments[free] = self._moments[:, free] = 0  # not what rounding left there

    def _accumulate(self, columns: torch.Tensor, reads: torch.Tensor, weight: int) -> None:
        assert self._moments is not None and self._owners is not None
        own = columns.long()
        inputs = reads[1:].float()  # the first token's huge activations are the same for every prompt
        every, product = self._moments.view(-1), weight * (inputs.mT @ inputs)
        for rows, part in zip(own.split(_ROWS_AT_ONCE), product.split(_ROWS_AT_ONCE), strict=True):
            # a third of the time of an indexed sum, and the same bits: no place comes twice
            every.scatter_add_(0, (rows[:, None] * len(self._moments) + own).view(-1), part.reshape(-1))
        self._owners[own] += weight

    def damping(self, columns: torch.Tensor, strength: float) -> torch.Tensor | None:
        """(I + M / lambda)^-1 [k, k] for an edit with these columns; None where there is nothing to damp.

        In float32; on a GPU in bfloat16, which is what it is multiplied in.
        """
        if self._moments is None or strength == 0:
            return None
        own = columns.long()
        moments = self._moments[own[:, None], own]
        level = moments.diagonal().mean()
        if not 0 < level < float("inf"):
            return None
        moments *= strength / level
        moments.diagonal().add_(1.0)
        factor, failed = torch.linalg.cholesky_ex(moments)
        if failed:  # what was taken out was so much more than what is left that rounding outweighs it
            return None
        if not moments.is_cuda:
            return torch.cholesky_inverse(factor)
        half = triangular_inverse(factor).bfloat16()  # its entries are at most 1: the matrix is at least the identity
        return half.mT @ half


class PageInterference:
    """The interference of each page, of those alone that were learned on last: 256 MB of them, or one.

    Of each there is one for each layer that the memory is added to. Pages that are left out are counted again, from
    what their edits read or from their texts, when an edit is next learned on them.

    Args:
        layers (int): how many layers. Default: 1.
    """

    def __init__(self, layers: int = 1) -> None:
        self._layers = layers
        self._pages: dict[int, tuple[Interference, ...]] = {}

    def empty(self) -> "PageInterference":
        """One of as many layers that counts nothing."""
        return PageInterference(self._layers)

    def of(self, page: int) -> tuple[Interference, ...]:
        """That of a page, in each layer; empty where nothing of it is counted."""
        found = self._pages.pop(page, None) or tuple(Interference() for _ in range(self._layers))
        self._pages[page] = found  # the latest come last
        return found

    def forget(self, page: int) -> None:
        """Counts nothing of a page any more."""
        self._pages.pop(page, None)

    def settle(self, width: int) -> list[int]:
        """Forgets the pages that were learned on longest ago, and gives their numbers; `width` is D."""
        most = max(1, _MOST_BYTES // (4 * width * width * self._layers))
        old = list(self._pages)[:-most]
        for page in old:
            self.forget(page)
        return old

    def bytes_to_come(self, width: int) -> int:
        """Bytes that the next counted edit may take: as `Interference.bytes_to_come`, of the page learned on last."""
        latest = next(reversed(self._pages.values()), (Interference(),) * self._layers)
        return sum(one.bytes_to_come(width) for one in latest)


_BLOCK = 512  # rows from which on a triangle is inverted in parts


def triangular_inverse(factor: torch.Tensor) -> torch.Tensor:
    """The inverse of a lower triangular matrix [k, k], by halves: nearly all of it is matrix products.

    At k = 4,096 on an H100 this and one product take 3 ms where torch.cholesky_inverse takes 6.4.
    """
    size = len(factor)
    if size <= _BLOCK:
        identity = torch.eye(size, dtype=factor.dtype, device=factor.device)
        return torch.linalg.solve_triangular(factor, identity, upper=False)
    half = size // 2
    upper, lower = triangular_inverse(factor[:half, :half]), triangular_inverse(factor[half:, half:])
    inverse = torch.zeros_like(factor)
    inverse[:half, :half], inverse[half:, half:] = upper, lower
    inverse[half:, :half] = -(lower @ (factor[half:, :half] @ upper))
    return inverse
