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
