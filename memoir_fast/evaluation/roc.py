"""How well a score tells two kinds apart: receiver operating characteristic."""

from collections.abc import Sequence


def roc_area(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive's score is above a negative's, ties counting half: the area under the ROC curve.

    Example:
        >>> roc_area([0.9, 0.5], [0.5, 0.1])
        0.875
    """
    _require(positive, negative)
    marked = sorted([(score, 1) for score in positive] + [(score, 0) for score in negative])
    wins = 0.0
    below = start = 0
    while start < len(marked):
        end = start
        while end < len(marked) and marked[end][0] == marked[start][0]:
            end += 1
        positives = sum(kind for _, kind in marked[start:end])
        negatives = end - start - positives
        wins += positives * (below + negatives / 2)
        below += negatives
        start = end
    return wins / (len(positive) * len(negative))


def roc_curve(positive: Sequence[float], negative: Sequence[float]) -> list[tuple[float, float, float]]:
    """(threshold, false positive rate, true positive rate), a score of at least the threshold being a match.

    From the strictest threshold, infinity, to the lowest score.

    Example:
        >>> roc_curve([0.9], [0.1])
        [(inf, 0.0, 0.0), (0.9, 0.0, 1.0), (0.1, 1.0, 1.0)]
    """
    _require(positive, negative)
    curve = [(float("inf"), 0.0, 0.0)]
    right, wrong = sorted(positive, reverse=True), sorted(negative, reverse=True)
    true = false = 0
    for threshold in sorted({*positive, *negative}, reverse=True):
        while true < len(right) and right[true] >= threshold:
            true += 1
        while false < len(wrong) and wrong[false] >= threshold:
            false += 1
        curve.append((threshold, false / len(wrong), true / len(right)))
    return curve


def _require(positive: Sequence[float], negative: Sequence[float]) -> None:
    if not positive or not negative:
        raise ValueError(f"both kinds need scores, got {len(positive)} positive and {len(negative)} negative")
