"""95 % intervals of accuracies, and the comparison of two classifiers on the same test images.

    accuracy                 m = mean over images of h, h the share of fits that are correct on an image
    effective images         n = m (1 - m) / variance of the mean; the number of images for one fit
    interval (Wilson)        (m + z^2 / 2n +- z sqrt(m (1 - m) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    mean per-class accuracy  the same, with the variance of the mean of class means
    difference               d = h - h' per image, with two more images of +1 and -1: mean +- z sqrt(variance / (n + 2))
    p-value                  exact: each image's difference changes its sign with probability 1/2

Sources: Wilson, JASA 1927, with the effective sample size of Korn and Graubard, Survey Methodology 1998; Bonett and
Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", 2012; McNemar,
Psychometrika 1947, which the sign test equals for one fit each.

Percentile bootstraps over images were rejected. Simulated, their intervals cover 82 % instead of 95 % near 100 %
accuracy or with two images per class, and those of the difference 87 % if few images differ; the ones here cover 94 %
or more. They also need no random numbers.

All are about other test images, for the training images of these fits.

Axes: N test images, F fits, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, gcd, sqrt
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
FEW = 1000  # tosses whose chances are summed exactly

Interval = tuple[float, float]


@dataclass(frozen=True)
class Hits:
    """How many of several fits classify each test image correctly.

    Parameters
    ----------
    counts : ndarray of shape (N,), int64
        Fits that are correct on each image.
    fits : int
        F.
    """

    counts: np.ndarray
    fits: int = 1

    @classmethod
    def of_fits(cls, correct: Sequence[np.ndarray]) -> "Hits":
        """Count over fits; each gives an array (N,) of bool, for the same images in the same order."""
        return cls(np.stack(correct).sum(axis=0, dtype=np.int64), len(correct))

    @property
    def shares(self) -> np.ndarray:
        """Share of the fits that are correct on each image, (N,), from 0 to 1."""
        shares: np.ndarray = self.counts / self.fits
        return shares

    @property
    def accuracy(self) -> float:
        """Accuracy in percent, mean over fits."""
        return 100.0 * int(self.counts.sum()) / (self.fits * len(self.counts))


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two accuracies on the same test images.

    Parameters
    ----------
    difference : float
        In percentage points.
    interval : (float, float)
        Its 95 % interval.
    p_value : float
        Probability of a difference as large or larger if both classifiers were equally good.
    """

    difference: float
    interval: Interval
    p_value: float


def accuracy_interval(hits: Hits) -> Interval:
    """Return the 95 % interval of an accuracy, in percent; for one fit, that of Wilson."""
    shares = hits.shares
    return _interval(float(shares.mean()), float(shares.var()) / len(shares), len(shares))


def mean_class_accuracy(hits: Hits, labels: np.ndarray) -> float:
    """Return the mean over classes of the accuracy in percent; classes without test images do not count.

    Parameters
    ----------
    hits : Hits
        Of the test images.
    labels : ndarray of shape (N,), int
        Their true classes.
    """
    return 100.0 * float(_by_class(hits, labels)[1].mean())


def mean_class_accuracy_interval(hits: Hits, labels: np.ndarray) -> Interval:
    """Return the 95 % interval of the mean per-class accuracy, in percent; parameters as for that."""
    counts, means, variances = _by_class(hits, labels)  # (C,)
    mean = float(means.mean())
    variances = np.where(counts > 1, variances, mean * (1 - mean))  # one image has no variance: take the largest
    variance = float((variances / counts).sum()) / len(counts) ** 2
    return _interval(mean, variance, len(counts) ** 2 / float((1 / counts).sum()))


def paired_difference(hits: Hits, others: Hits) -> PairedDifference:
    """Return how much more accurate one classifier is than another on the same images.

    Parameters
    ----------
    hits, others : Hits
        Of the same images in the same order; their numbers of fits may differ.
    """
    steps = hits.counts * others.fits - others.counts * hits.fits  # integers, for an exact test
    per_image = steps / (hits.fits * others.fits)
    spread = np.append(per_image, (1.0, -1.0))
    half = Z * sqrt(float(spread.var()) / len(spread))
    centre = float(spread.mean())
    interval = 100.0 * max(centre - half, -1.0), 100.0 * min(centre + half, 1.0)
    return PairedDifference(100.0 * float(per_image.mean()), interval, sign_test(steps))


def sign_test(steps: np.ndarray) -> float:
    """Return the two-sided p-value of a sum of integers (N,) if each were as likely to have the other sign.

    Integers of one size, as between two single fits, give the exact test of McNemar.
    """
    found = steps[steps != 0]
    if len(found) == 0:
        return 1.0
    sizes, counts = np.unique(np.abs(found), return_counts=True)
    sizes = sizes // gcd(*map(int, sizes))
    total = abs(int(found.sum())) // gcd(*map(int, np.abs(found)))
    if len(sizes) == 1:
        positive = (int(counts[0]) + total) // 2
        return min(1.0, 2.0 * _chance_of_heads(positive, int(counts[0])))
    chances = _chances_of_sums(sizes, counts)
    return min(1.0, 2.0 * max(0.0, float(chances[(len(chances) - 1) // 2 + total :].sum())))


def _chance_of_heads(least: int, tosses: int) -> float:
    """Return the chance of at least so many heads."""
    if tosses <= FEW:
        return float(sum(comb(tosses, heads) for heads in range(least, tosses + 1)) / 2**tosses)
    from scipy.special import bdtrc  # 0.3 s to import

    return float(bdtrc(least - 1, tosses, 0.5))


def _chances_of_sums(sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the chance of each sum, from the smallest to the largest, of `counts` integers of +-`sizes` each."""
    from scipy.signal import fftconvolve  # with scipy.stats, a second to import, and needed for several fits only
    from scipy.stats import binom

    chances = np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        of_size = np.zeros(2 * size * count + 1)
        of_size[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = fftconvolve(chances, of_size)
    return chances


def _by_class(hits: Hits, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of images, the mean share and the sample variance of the shares of each class with images."""
    shares = hits.shares
    counts = np.bincount(labels)
    present = counts > 0
    sums, squares = (np.bincount(labels, weights=values)[present] for values in (shares, shares**2))
    counts = counts[present]
    means = sums / counts
    return counts, means, np.maximum(squares / counts - means**2, 0.0) * counts / np.maximum(counts - 1, 1)


def _interval(mean: float, variance: float, most_varied: float) -> Interval:
    """Return Wilson's interval in percent of a mean of shares, given the variance of the mean.

    `most_varied` is the effective number of images if they vary as much as they can; it is used if none vary.
    """
    images = mean * (1 - mean) / variance if variance > 1e-15 else most_varied
    centre = (mean + Z**2 / (2 * images)) / (1 + Z**2 / images)
    half = Z * sqrt(max(mean * (1 - mean), 0.0) / images + Z**2 / (4 * images**2)) / (1 + Z**2 / images)
    return 100.0 * max(0.0, centre - half), 100.0 * min(1.0, centre + half)
