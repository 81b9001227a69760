"""What the fits of one method predict for the test images: gain per class, confusion, errors and calibration.

Axes: N test images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from taskres_cache.caches.class_halves import open_cache
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import RunError
from taskres_cache.reporting.conclusions.standings import Standing
from taskres_cache.reporting.notes import test_notes
from taskres_cache.runs.class_matching import class_rows, text_head, with_text_of
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.evaluation import predictions_of
from taskres_cache.runs.run import Run, own_cache
from taskres_cache.runs.scores import Predictions, Reliability, class_accuracies, confusion_matrix, reliability
from taskres_cache.runs.statistics.intervals import Hits

MAX_PAIRS, MAX_ERRORS = 12, 24


@dataclass(frozen=True)
class ClassGain:
    """Accuracy of one class in percent: zero-shot (None without text), and the mean over fits."""

    name: str
    images: int
    zero_shot: float | None
    adapted: float

    @property
    def gain(self) -> float | None:
        """Difference in percentage points; None without text."""
        return None if self.zero_shot is None else self.adapted - self.zero_shot


@dataclass(frozen=True)
class ConfusedPair:
    """Test images of one class that are predicted as another: number per fit, and percent of the class."""

    true_class: str
    predicted_class: str
    images: float
    share: float


@dataclass(frozen=True)
class Misclassification:
    """A test image that at least one fit classifies wrongly.

    Parameters
    ----------
    path, stamp : str
        Path and stamp of the image, as in the cache.
    true_class, predicted_class : str
        Class names; the prediction is that of the most confident of the wrong fits.
    confidence : float
        In percent, the mean over the wrong fits.
    fits : int
        Number of wrong fits.
    """

    path: str
    stamp: str
    true_class: str
    predicted_class: str
    confidence: float
    fits: int


@dataclass(frozen=True)
class Analysis:
    """Predictions of one method at one shot count for the test images, over all seeds.

    Parameters
    ----------
    classifier : Classifier
        Of the first seed; recipe and provenance are the same for all.
    seeds : tuple of int
        Seeds of the fits.
    chosen_by : str
        Why this method is analysed.
    images : int
        N.
    gains : tuple of ClassGain
        Classes in label order, without those that have no test image.
    confusion : ndarray of shape (C, C)
        Mean number of images per fit; rows are true classes, columns predicted ones.
    pairs : tuple of ConfusedPair
        The most frequent first.
    errors : tuple of Misclassification
        The most confident first.
    untempered, tempered : Reliability
        Confidence and accuracy, without and with the temperature.
    temperatures : tuple of float
        One per seed.
    notes : tuple of str
        Warnings for the reader.
    cache : Path, optional
        The cache of the images.
    standing : Standing, optional
        Accuracy with its interval, and the comparison with zero-shot.
    """

    classifier: Classifier
    seeds: tuple[int, ...]
    chosen_by: str
    images: int
    gains: tuple[ClassGain, ...]
    confusion: np.ndarray
    pairs: tuple[ConfusedPair, ...]
    errors: tuple[Misclassification, ...]
    untempered: Reliability
    tempered: Reliability
    temperatures: tuple[float, ...]
    notes: tuple[str, ...] = ()
    cache: Path | None = None
    standing: Standing | None = None


def analyse(fits: Sequence[Run], chosen_by: str, cache_dir: Path, device: torch.device) -> Analysis:
    """Analyse the predictions of fits on the test images of their cache.

    Parameters
    ----------
    fits : sequence of Run
        All seeds of one method and shot count.
    chosen_by : str
        Why this method was chosen.
    cache_dir : Path
        Folder of all caches, for runs whose cache has moved.
    device : torch.device
        Where predictions are computed.

    Returns
    -------
    Analysis
        Gains, confusion, errors and calibration.

    Raises
    ------
    CacheError
        The cache does not exist or is damaged.
    RunError
        The cache has features of another checkpoint, other classes, or no test images.
    """
    classifiers = [fit.classifier for fit in fits]
    first = classifiers[0]
    cache = with_text_of(first, open_cache(own_cache(fits[0].folder, first, cache_dir), first.half))
    rows = cache.rows("test")
    heads = [classifier.head.of_classes(class_rows(classifier, cache)) for classifier in classifiers]
    text = text_head(cache)
    before = [] if text is None else [text]
    predictions = predictions_of(cache, rows, [*before, *heads], device)
    if predictions is None:
        raise RunError(f"{cache.path} has no test images")
    zero_shot, adapted = predictions[0] if before else None, predictions[len(before) :]
    confusion = np.mean([confusion_matrix(one, len(cache.classnames)) for one in adapted], axis=0)  # (C, C)
    correct = np.concatenate([one.correct for one in adapted])
    return Analysis(
        classifier=first,
        seeds=tuple(classifier.seed for classifier in classifiers),
        chosen_by=chosen_by,
        images=len(rows),
        gains=_gains(cache.classnames, zero_shot, adapted),
        confusion=confusion,
        pairs=_pairs(cache.classnames, confusion),
        errors=_errors(cache, rows, adapted),
        untempered=reliability(np.concatenate([one.untempered for one in adapted]), correct),
        tempered=reliability(np.concatenate([one.confidences for one in adapted]), correct),
        temperatures=tuple(classifier.temperature for classifier in classifiers),
        notes=_notes(fits, adapted, cache),
        cache=cache.path,
        standing=_standing(classifiers, zero_shot, adapted),
    )


def _standing(
    classifiers: Sequence[Classifier], zero_shot: Predictions | None, adapted: Sequence[Predictions]
) -> Standing:
    """Return how the fits stand on the test images, over all seeds."""
    first, hits = classifiers[0], Hits.of_fits([one.correct for one in adapted])
    before = None if zero_shot is None else Hits.of_fits([zero_shot.correct])
    seeds = tuple(classifier.seed for classifier in classifiers)
    return Standing(first.method, first.shots, seeds, adapted[0].labels, hits, before)


def _gains(
    classnames: Sequence[str], zero_shot: Predictions | None, adapted: Sequence[Predictions]
) -> tuple[ClassGain, ...]:
    classes = len(classnames)
    counts = np.bincount(adapted[0].labels, minlength=classes).tolist()
    before = [None] * classes if zero_shot is None else class_accuracies(zero_shot, classes)
    after = zip(*(class_accuracies(one, classes) for one in adapted), strict=True)
    return tuple(
        ClassGain(name, count, old, float(np.mean(new)))
        for name, count, old, new in zip(classnames, counts, before, after, strict=True)
        if count
    )


def _pairs(classnames: Sequence[str], confusion: np.ndarray) -> tuple[ConfusedPair, ...]:
    """Return the pairs of classes with the most images; ties are ordered by their share of the class."""
    wrong = confusion * ~np.eye(len(classnames), dtype=bool)
    shares = 100.0 * wrong / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-shares.ravel(), -wrong.ravel()))[:MAX_PAIRS]
    places = [divmod(int(cell), len(classnames)) for cell in order]
    return tuple(
        ConfusedPair(classnames[row], classnames[column], float(wrong[row, column]), float(shares[row, column]))
        for row, column in places
        if wrong[row, column] > 0
    )


def _errors(cache: FeatureCache, rows: np.ndarray, adapted: Sequence[Predictions]) -> tuple[Misclassification, ...]:
    """Return the images with the largest confidence in wrong predictions, summed over fits."""
    wrong = np.stack([~one.correct for one in adapted])  # (fits, N)
    confidences = np.stack([one.confidences for one in adapted]) * wrong
    order = np.argsort(-confidences.sum(axis=0), kind="stable")[:MAX_ERRORS]
    files = cache.files()
    found = []
    for place in order.tolist():
        if not wrong[:, place].any():
            break
        path, stamp = files[rows[place]]
        surest = adapted[int(confidences[:, place].argmax())]
        true_class, predicted_class = (cache.classnames[label[place]] for label in (surest.labels, surest.classes))
        count = int(wrong[:, place].sum())
        confidence = 100.0 * float(confidences[:, place].sum()) / count
        found.append(Misclassification(path, stamp, true_class, predicted_class, confidence, count))
    return tuple(found)


def _notes(fits: Sequence[Run], adapted: Sequence[Predictions], cache: FeatureCache) -> tuple[str, ...]:
    """Return notes on what the accuracies leave out, on missing temperatures, and on a changed cache."""
    changed = [
        fit.metrics.seed
        for fit, found in zip(fits, adapted, strict=True)
        if abs(fit.metrics.test_accuracy - found.accuracy) > 100 / len(found.labels) + 1e-9  # one image: other devices
    ]
    uncalibrated = [fit.metrics.seed for fit in fits if fit.metrics.val_accuracy is None]
    notes = test_notes(cache)
    if uncalibrated:
        notes.append(
            f"The runs of {_seeds(uncalibrated)} have no validation images: their temperature is 1, "
            "and their probabilities are not calibrated."
        )
    if changed:
        notes.append(
            f"{cache.path} has changed since the runs of {_seeds(changed)} were measured. This section shows today's "
            "cache."
        )
    return tuple(notes)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
