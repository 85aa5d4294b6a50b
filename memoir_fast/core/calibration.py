"""`Calibration`: a threshold, and what it was read from."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

_LOW, _HIGH = 0.1, 0.9  # quantiles that are fitted


@dataclass(frozen=True)
class Calibration:
    """A threshold, and the distribution of best overlaps of irrelevant prompts that it was read from."""

    tau: float
    false_match_rate: float
    edits: int
    """Live edits when it was made."""
    holds_until: int
    """Edits up to which the drift of the distribution is allowed for."""
    prompts: int
    location: float
    scale: float
    """Of the Gumbel distribution of best overlaps, with `edits` edits."""
    drift: float
    """By how much `location` moves up when the number of edits doubles."""
    counted: bool
    """The prompts were many enough for the rate: tau is their quantile, not that of the fitted distribution."""
    rewordings_matched: float | None
    """Share of slightly reworded prompts of stored edits that still match at tau; None where it was not asked."""

    def expected_tau(self, edits: int) -> float:
        """The threshold for the same rate with another number of edits, extrapolated."""
        return min(1.0, self.tau + self.drift * math.log2(edits / self.holds_until))

    def rate(self, tau: float, edits: int) -> float:
        """The share of irrelevant prompts expected to match at a threshold, with so many edits, by the distribution.

        Example:
            >>> from memoir_fast import Calibration
            >>> found = Calibration(0.5, 1e-3, 100, 125, 64, 0.3, 0.02, 0.01, False, None)
            >>> round(found.rate(0.5, 100), 6), found.rate(0.5, 1600) > found.rate(0.5, 100) > found.rate(0.6, 100)
            (4.5e-05, True)
        """
        location = self.location + self.drift * math.log2(edits / self.edits) if edits else -math.inf
        if self.scale <= 0:  # all best overlaps were one
            return float(tau <= location)
        return -math.expm1(-math.exp(min(700.0, (location - tau) / self.scale)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def gumbel(best: torch.Tensor) -> tuple[float, float]:
    """Location and scale of the Gumbel distribution with the sample's 10 % and 90 % quantiles."""
    low, high = best.quantile(torch.tensor([_LOW, _HIGH], dtype=best.dtype, device=best.device)).tolist()
    scale = (high - low) / (_reduced(_HIGH) - _reduced(_LOW))
    return high - scale * _reduced(_HIGH), scale


def _reduced(probability: float) -> float:
    """The quantile of the Gumbel distribution with location 0 and scale 1."""
    return -math.log(-math.log(probability))
