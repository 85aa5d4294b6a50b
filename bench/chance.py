"""How often random masks match by chance, by formula: what a search among N stored edits is up against.

A query of k bits shares Binomial(k, p) of them with a mask whose bits are set with probability p each. An irrelevant
prompt is compared with all N stored masks, and the best overlap decides: it lies below t with probability
(1 - P(one >= t))^N. Such a maximum is nearly Gumbel: `memoir_fast.core.calibration` fits that to real prompts.
"""

import torch


def best_below(k: int, density: float, stored: int) -> torch.Tensor:
    """P(best overlap of `stored` random masks < t) for a query of k bits and t = 0 .. k + 1, float64 [k + 2]."""
    bits = torch.arange(k + 1, dtype=torch.float64)
    shared = torch.tensor(density, dtype=torch.float64)
    ways = torch.lgamma(bits.new_tensor(k + 1.0)) - torch.lgamma(bits + 1) - torch.lgamma(k - bits + 1)
    chance = (ways + bits * shared.log() + (k - bits) * torch.log1p(-shared)).exp()
    at_least = chance.flip(0).cumsum(0).flip(0).clamp(max=1.0)  # the smallest first: no small tail is lost
    return torch.cat([(stored * torch.log1p(-at_least)).exp(), bits.new_ones(1)])


def threshold(below: torch.Tensor, rate: float) -> int:
    """The least overlap in bits that at most a share `rate` of irrelevant prompts reach."""
    return int((below >= 1 - rate).nonzero()[0])


def location(below: torch.Tensor) -> float:
    """Where the Gumbel distribution of best overlaps sits: its quantile 1 / e, in bits, between whole ones."""
    wanted = torch.exp(below.new_tensor(-1.0))
    after = int((below >= wanted).nonzero()[0])
    step = below[after] - below[after - 1]
    return after - 1 + float((wanted - below[after - 1]) / step) - 0.5  # below[t] speaks of overlaps up to t - 1
