"""What a classifier says of labelled images, and how good that is: overall, by class, in confidence. Knows no torch.

Axes: N images, C classes, B bins of confidence.
"""

from dataclasses import dataclass

import numpy as np

TOP = 5
BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of N images.

    Parameters
    ----------
    labels, classes : (N,) int64, what they are and what they are taken for.
    in_top5 : (N,) whether the label is among the five best.
    confidences : (N,) float32 from 0 to 1, the calibrated probability of the class that they are taken for.
    untempered : (N,) likewise, without the temperature.
    """

    labels: np.ndarray
    classes: np.ndarray
    in_top5: np.ndarray
    confidences: np.ndarray
    untempered: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(N,) whether each is taken for what it is."""
        same: np.ndarray = self.labels == self.classes
        return same

    @property
    def accuracy(self) -> float:
        """In percent."""
        return percentage(self.right)

    @property
    def top5_accuracy(self) -> float:
        """How often the label is among the five best, in percent."""
        return percentage(self.in_top5)


def percentage(right: np.ndarray) -> float:
    """Return the share of what is true, in percent."""
    return 100.0 * int(right.sum()) / len(right)


def class_accuracies(predictions: Predictions, classes: int) -> list[float | None]:
    """Return the accuracy in percent of each class's images (C,); None for a class that has none."""
    counts = np.bincount(predictions.labels, minlength=classes)
    right = np.bincount(predictions.labels[predictions.right], minlength=classes)
    return [
        100.0 * hits / count if count else None for hits, count in zip(right.tolist(), counts.tolist(), strict=True)
    ]


def confusion_matrix(predictions: Predictions, classes: int) -> np.ndarray:
    """Return counts (C, C) of images, by what they are (rows) and what they are taken for (columns)."""
    cells = predictions.labels * classes + predictions.classes
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class Reliability:
    """Images by how sure the classifier was of them, in B bins of equal width from 0 to 1.

    Parameters
    ----------
    counts : (B,) images.
    confidences, accuracies : (B,) mean confidence and share that is right, from 0 to 1; 0 in an empty bin.
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error in percent: how far apart confidence and accuracy are, over all images."""
        gaps = np.abs(self.confidences - self.accuracies)
        return float(100.0 * (self.counts * gaps).sum() / max(self.counts.sum(), 1))


def reliability(confidences: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Return confidences (M,) from 0 to 1, and whether each image was right (M,), in bins.

    A bin holds what lies above its lower edge, up to and with its upper one.
    """
    places = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)  # (M,)
    counts = np.bincount(places, minlength=bins)
    filled = np.maximum(counts, 1)
    sums = (np.bincount(places, weights=values, minlength=bins) for values in (confidences, right.astype(np.float64)))
    mean_confidences, accuracies = (total / filled for total in sums)
    return Reliability(counts, mean_confidences, accuracies)
