"""A closer look at the fits of one method: classes, confusions, mistakes and calibration, as plain values.

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
from taskres_cache.runs.evaluation import class_rows, predictions_of, text_head
from taskres_cache.runs.measures import Predictions, Reliability, class_accuracies, confusion_matrix, reliability
from taskres_cache.runs.run import Classifier, Run, own_cache

MOST_PAIRS, MOST_MISTAKES = 12, 24


@dataclass(frozen=True)
class ClassGain:
    """A class, its test images, and its accuracy in percent: zero-shot, and the mean of base + residual over seeds."""

    name: str
    images: int
    zero_shot: float
    adapted: float

    @property
    def gain(self) -> float:
        """In points."""
        return self.adapted - self.zero_shot


@dataclass(frozen=True)
class ConfusedPair:
    """Test images of one class that are taken for another: how many a fit, and their share of the class in percent."""

    name: str
    taken_for: str
    images: float
    share: float


@dataclass(frozen=True)
class Mistake:
    """A test image that fits take for something else.

    Parameters
    ----------
    path, stamp : of the image, as the cache has them.
    name, taken_for : of the classes.
    confidence : in percent, the mean of the fits that are wrong.
    fits : how many of them are.
    """

    path: str
    stamp: str
    name: str
    taken_for: str
    confidence: float
    fits: int


@dataclass(frozen=True)
class CloserLook:
    """What the fits of one method and shot count do on the test images, over all seeds.

    Parameters
    ----------
    classifier : of the first seed, for recipe and provenance, which all share.
    seeds : of the fits.
    chosen_by : why this method, in words.
    images : N.
    gains : (C,) classes in label order; those without a test image are left out.
    confusion : (C, C) mean number of images, by what they are (rows) and what they are taken for.
    pairs, mistakes : the most frequent, and the most certain first.
    untempered, tempered : confidence against accuracy, without the temperature and with it.
    temperatures : (seeds,)
    notes : what a reader should know.
    """

    classifier: Classifier
    seeds: tuple[int, ...]
    chosen_by: str
    images: int
    gains: tuple[ClassGain, ...]
    confusion: np.ndarray
    pairs: tuple[ConfusedPair, ...]
    mistakes: tuple[Mistake, ...]
    untempered: Reliability
    tempered: Reliability
    temperatures: tuple[float, ...]
    notes: tuple[str, ...] = ()


def look_closer(fits: Sequence[Run], chosen_by: str, cache_dir: Path, device: torch.device) -> CloserLook:
    """Return what fits of one method and shot count do on the test images of their own cache.

    Raises
    ------
    CacheError, RunError : the cache is not there, damaged, or of another checkpoint or other classes.
    """
    classifiers = [fit.classifier for fit in fits]
    first = classifiers[0]
    cache = open_cache(own_cache(fits[0].folder, first, cache_dir), first.half)
    rows = cache.rows("test")
    heads = [classifier.head.of_classes(class_rows(classifier, cache)) for classifier in classifiers]
    said = predictions_of(cache, rows, [text_head(cache), *heads], device)
    if said is None:
        raise RunError(f"{cache.path} has no test image")
    zero_shot, *adapted = said
    confusion = np.mean([confusion_matrix(one, len(cache.classnames)) for one in adapted], axis=0)  # (C, C)
    pooled = np.concatenate([one.right for one in adapted])
    return CloserLook(
        classifier=first,
        seeds=tuple(classifier.seed for classifier in classifiers),
        chosen_by=chosen_by,
        images=len(rows),
        gains=_gains(cache.classnames, zero_shot, adapted),
        confusion=confusion,
        pairs=_pairs(cache.classnames, confusion),
        mistakes=_mistakes(cache, rows, adapted),
        untempered=reliability(np.concatenate([one.untempered for one in adapted]), pooled),
        tempered=reliability(np.concatenate([one.confidences for one in adapted]), pooled),
        temperatures=tuple(classifier.temperature for classifier in classifiers),
        notes=_notes(fits, adapted, cache),
    )


def _gains(classnames: Sequence[str], zero_shot: Predictions, adapted: Sequence[Predictions]) -> tuple[ClassGain, ...]:
    counts = np.bincount(zero_shot.labels, minlength=len(classnames)).tolist()
    before = class_accuracies(zero_shot, len(classnames))
    after = zip(*(class_accuracies(one, len(classnames)) for one in adapted), strict=True)
    return tuple(
        ClassGain(name, count, old, float(np.mean(new)))
        for name, count, old, new in zip(classnames, counts, before, after, strict=True)
        if old is not None
    )


def _pairs(classnames: Sequence[str], confusion: np.ndarray) -> tuple[ConfusedPair, ...]:
    """Return the pairs of classes with the most images; of equal ones those with the greater share first."""
    wrong = confusion * ~np.eye(len(classnames), dtype=bool)
    shares = 100.0 * wrong / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-shares.ravel(), -wrong.ravel()))[:MOST_PAIRS]
    places = [divmod(int(cell), len(classnames)) for cell in order]
    return tuple(
        ConfusedPair(classnames[row], classnames[column], float(wrong[row, column]), float(shares[row, column]))
        for row, column in places
        if wrong[row, column] > 0
    )


def _mistakes(cache: FeatureCache, rows: np.ndarray, adapted: Sequence[Predictions]) -> tuple[Mistake, ...]:
    """Return the images that most fits are most certain of, and wrong; the class named is that of the surest fit."""
    wrong = np.stack([~one.right for one in adapted])  # (fits, N)
    confidences = np.stack([one.confidences for one in adapted]) * wrong
    order = np.argsort(-confidences.sum(axis=0), kind="stable")[:MOST_MISTAKES]
    files = cache.files()
    found = []
    for place in order.tolist():
        if not wrong[:, place].any():
            break
        path, stamp = files[rows[place]]
        surest = adapted[int(confidences[:, place].argmax())]
        name, taken_for = (cache.classnames[label[place]] for label in (surest.labels, surest.classes))
        count = int(wrong[:, place].sum())
        confidence = 100.0 * float(confidences[:, place].sum()) / count
        found.append(Mistake(path, stamp, name, taken_for, confidence, count))
    return tuple(found)


def _notes(fits: Sequence[Run], adapted: Sequence[Predictions], cache: FeatureCache) -> tuple[str, ...]:
    """Say so where the cache has become another since the runs were fitted."""
    changed = [
        fit.metrics.seed
        for fit, said in zip(fits, adapted, strict=True)
        if abs(fit.metrics.test_accuracy - said.accuracy) > 100 / len(said.labels) + 1e-9  # an image: other devices
    ]
    if not changed:
        return ()
    seeds = ", ".join(map(str, changed))
    return (f"{cache.path} has changed since the runs of seed {seeds} were measured: what follows is of today's.",)
