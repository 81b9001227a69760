"""Predictions on labelled images and their scores: accuracy, by class, confusion, calibration. Does not need torch.

Axes: N images, C classes, B bins of confidence.
"""

from dataclasses import dataclass

import numpy as np

TOP = 5
BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017


@dataclass(frozen=True)
class Predictions:
    """What a classifier predicts for N labelled images.

    Parameters
    ----------
    labels, classes : ndarray of shape (N,), int64
        True and predicted classes.
    in_top5 : ndarray of shape (N,), bool
        True if the label is among the top 5 classes.
    confidences : ndarray of shape (N,), float32
        Calibrated probability of the predicted class, from 0 to 1.
    untempered : ndarray of shape (N,), float32
        The same without the temperature.
    """

    labels: np.ndarray
    classes: np.ndarray
    in_top5: np.ndarray
    confidences: np.ndarray
    untempered: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """True for each image whose class is predicted correctly, (N,)."""
        same: np.ndarray = self.labels == self.classes
        return same

    @property
    def accuracy(self) -> float:
        """Accuracy in percent."""
        return percentage(self.correct)

    @property
    def top5_accuracy(self) -> float:
        """Top-5 accuracy in percent."""
        return percentage(self.in_top5)


@dataclass(frozen=True)
class ImageHits:
    """Which test images a fit classifies correctly; kept in memory only.

    Parameters
    ----------
    labels : ndarray of shape (N,), int64
        True classes.
    correct : ndarray of shape (N,), bool
        True where the fit is correct.
    zero_shot_correct : ndarray of shape (N,), bool, or None
        True where zero-shot is correct; None for a cache without text.
    """

    labels: np.ndarray
    correct: np.ndarray
    zero_shot_correct: np.ndarray | None


def percentage(correct: np.ndarray) -> float:
    """Return the percentage of true values."""
    return 100.0 * int(correct.sum()) / len(correct)


def class_accuracies(predictions: Predictions, classes: int) -> list[float | None]:
    """Return the accuracy in percent on the images of each class (C,); None for a class without images."""
    counts = np.bincount(predictions.labels, minlength=classes)
    correct = np.bincount(predictions.labels[predictions.correct], minlength=classes)
    return [
        100.0 * hits / count if count else None for hits, count in zip(correct.tolist(), counts.tolist(), strict=True)
    ]


def confusion_matrix(predictions: Predictions, classes: int) -> np.ndarray:
    """Return the number of images (C, C) by true class (rows) and predicted class (columns)."""
    cells = predictions.labels * classes + predictions.classes
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in B bins of confidence of equal width from 0 to 1.

    Parameters
    ----------
    counts : ndarray of shape (B,)
        Images per bin.
    confidences, accuracies : ndarray of shape (B,)
        Mean confidence and accuracy per bin, from 0 to 1; 0 in an empty bin.
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error in percent: the mean gap between confidence and accuracy over all images."""
        gaps = np.abs(self.confidences - self.accuracies)
        return float(100.0 * (self.counts * gaps).sum() / max(self.counts.sum(), 1))


def reliability(confidences: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Return confidence against accuracy in bins, each of which includes its upper edge.

    Parameters
    ----------
    confidences : ndarray of shape (N,)
        From 0 to 1.
    correct : ndarray of shape (N,), bool
        True if the prediction is correct.
    bins : int, default 15
        B.
    """
    places = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)  # (N,)
    counts = np.bincount(places, minlength=bins)
    filled = np.maximum(counts, 1)
    sums = (np.bincount(places, weights=values, minlength=bins) for values in (confidences, correct.astype(np.float64)))
    mean_confidences, accuracies = (total / filled for total in sums)
    return Reliability(counts, mean_confidences, accuracies)
