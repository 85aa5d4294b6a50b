"""Which prompts name an edit's subject: its tokens are among theirs."""

import torch

SPELLINGS, TOKENS = 5, 8
"""P, in how many ways a subject's tokens are kept, and T, how many of each."""

_AT_ONCE = 1 << 24  # tokens of subjects, for each prompt, that are looked up together


def present(tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Tokens int64 [B, N] of prompts, -1: none -> which of V tokens each has, bool [B, 1 + V], token t at 1 + t.

    The first column stands for what a spelling does not have; it is always there.
    """
    there = torch.zeros((len(tokens), vocabulary + 1), dtype=torch.bool, device=tokens.device)
    there.scatter_(1, tokens + 1, True)
    there[:, 0] = True
    return there


def named(names: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Which of R subjects are named by each of B prompts, bool [B, R]; a row without a subject is, by any.

    Named: all tokens of one of its spellings are among the prompt's, in whatever order.

    Args:
        names (Tensor): int32 [R, P, T], the tokens of each spelling, -1 behind them; -1 throughout: no such spelling,
            or, where that holds of all, no subject.
        words (Tensor): bool [B, 1 + V], what `present` says of the prompts.

    Example:
        >>> import torch
        >>> from memoir_fast.modules.naming import named, present
        >>> subjects = torch.tensor([[[3, 5], [4, -1]], [[-1, -1], [-1, -1]]]).int()
        >>> named(subjects, present(torch.tensor([[5, 1, 3], [5, 1, 4], [5, 1, -1]]), 6)).tolist()
        [[True, True], [True, True], [False, True]]
    """
    parts = [words.new_zeros((len(words), 0))]
    for some in names.split(max(1, _AT_ONCE // (SPELLINGS * TOKENS * max(1, len(words))))):
        found = words[:, some.flatten().long() + 1].view(len(words), *some.shape).all(dim=3)
        given = some[..., 0] >= 0
        parts.append((found & given).any(dim=2) | ~given.any(dim=1))
    return torch.cat(parts, dim=1)


def have(names: torch.Tensor) -> torch.Tensor:
    """Which rows int32 [R, P, T] have a subject, bool [R]."""
    return (names[..., 0] >= 0).any(dim=1)
