"""Cross-validated accuracy of features: zero-shot, and with GDA, whose weight is chosen inside each training part.

Axes: N images, C classes, D embedding.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from taskres_cache.heads.head import Head
from taskres_cache.methods.few_shot import FewShotTask, Images, Text
from taskres_cache.methods.linear.gda import GdaOptions
from taskres_cache.methods.linear.gda import fit as fit_gda

FOLDS = 5
Z_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Correct:
    """Which images are classified correctly.

    Parameters
    ----------
    zero_shot, adapted : ndarray of shape (N,), bool
        By the text features alone, and by GDA fitted on the other folds.
    """

    zero_shot: np.ndarray
    adapted: np.ndarray


def cross_validated(images: Images, text: Text, logit_scale: float, seed: int = 0) -> Correct:
    """Classify each image with a head that was fitted on the other folds.

    Parameters
    ----------
    images : Images
        Features (N, D), un-normalised, with labels.
    text : Text
        Prompts of the classes.
    logit_scale : float
        Factor of the cosines.
    seed : int, optional
        Of the division into folds.

    Returns
    -------
    Correct
        For each image, whether zero-shot and the adapted head are right.
    """
    folds = stratified_folds(images.labels, FOLDS, seed)
    features, labels = torch.from_numpy(images.image_features), torch.from_numpy(images.labels)
    adapted = np.zeros(len(labels), bool)
    for fold in np.unique(folds):
        held_out, others = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        head = _fitted(_rows(images, others), folds[others], text, logit_scale)
        predicted = head.scores(features[held_out]).argmax(dim=1)
        adapted[held_out] = (predicted == labels[held_out]).numpy()
    zero_shot = (features @ torch.from_numpy(text.ensemble).T).argmax(dim=1) == labels
    return Correct(zero_shot.numpy(), adapted)


def _fitted(images: Images, folds: np.ndarray, text: Text, logit_scale: float) -> Head:
    """Return GDA's head for some images; one of their folds has chosen the weight of the images against the text."""
    inner = folds == folds.min()
    part, val = _rows(images, np.flatnonzero(~inner)), _rows(images, np.flatnonzero(inner))
    chosen = fit_gda(FewShotTask(part, text, logit_scale, 1, 0, val), GdaOptions()).chosen
    alone = GdaOptions((float(chosen["alpha"]),))
    return fit_gda(FewShotTask(images, text, logit_scale, 1, 0, images), alone).head


def _rows(images: Images, rows: np.ndarray) -> Images:
    return Images(images.image_features[rows], images.labels[rows])


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold (N,) of each image; every fold has its share of every class, and all are about as large."""
    draw, result, begin = np.random.default_rng(seed), np.empty(len(labels), np.int64), 0
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))
        result[rows] = (begin + np.arange(len(rows))) % folds
        begin += len(rows)
    return result


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval, in percent, of an accuracy (Wilson, 1927); it stays between 0 and 100."""
    share, z2 = correct / images, Z_95**2
    centre, spread = share + z2 / (2 * images), Z_95 * math.sqrt((share * (1 - share) + z2 / (4 * images)) / images)
    low, high = ((centre + sign * spread) / (1 + z2 / images) for sign in (-1, 1))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def paired_difference(correct: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the difference of two accuracies on the same images (N,), in points, and half of its 95 % interval.

    It is narrower than the intervals of the two accuracies, because hard images are hard for both.
    """
    differences = correct.astype(float) - reference.astype(float)
    return 100 * differences.mean(), 100 * Z_95 * differences.std(ddof=1) / math.sqrt(len(differences))
