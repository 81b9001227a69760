"""The mean of paired differences, with its interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences in points.

    Parameters
    ----------
    mean : float
        Positive if the method is better than the reference.
    pairs : int
        Number of pairs: fits of both on the same data set, shots and seed.
    low, high : float or None
        Its interval; None for fewer than two pairs.
    """

    mean: float
    pairs: int
    low: float | None = None
    high: float | None = None


def paired_difference(accuracies: Sequence[float], references: Sequence[float]) -> Difference:
    """Return the mean of `accuracies - references` with its 95 % t-interval.

    Parameters
    ----------
    accuracies, references : sequence of float
        Test accuracies in percent, pair by pair; at least one.

    Notes
    -----
    `mean ± t(0.975, n - 1) * s / sqrt(n)`, with the standard deviation s of the n differences. It takes the pairs for
    independent and normal. A bootstrap was rejected: of three seeds it has ten distinct samples, and its intervals
    are far too short.
    """
    differences = [one - other for one, other in zip(accuracies, references, strict=True)]
    mean, pairs = statistics.mean(differences), len(differences)
    if pairs < 2:
        return Difference(mean, pairs)
    from scipy.special import stdtrit  # 0.3 s to import

    half = float(stdtrit(pairs - 1, (1 + LEVEL) / 2)) * statistics.stdev(differences) / math.sqrt(pairs)
    return Difference(mean, pairs, mean - half, mean + half)
