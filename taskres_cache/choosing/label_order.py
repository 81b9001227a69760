"""The order in which labels of images help most: greedy coverage of the images, weighted by uncertainty.

    d(i, j) = |f_i - f_j|^2, of normalised features
    next = argmax_j sum_i w_i max(0, min over chosen k of d(i, k) - d(i, j))

Each image in turn reduces the weighted distance of all images to their nearest chosen one most: greedy k-medoids, that
is facility location (Wei et al., "Submodularity in data subset selection and active learning", ICML 2015). A medoid is
typical of its neighbourhood, as what TypiClust chooses for few labels (Hacohen et al., ICML 2022), but without a number
of clusters, so that every beginning of the order is an answer of its own. K-centre was rejected: it takes outliers
first. With few labels all weights are 1. From four labels per class on, w = 1 - margin: uncertain regions are covered
first, and one image stands for its neighbours. That few labels are better spent on typical images is a finding of
TypiClust's authors; the number four was settled on val images of the bundled digits.

Axes: N images, M labelled images, C classes, D embedding.
"""

import heapq
from dataclasses import dataclass

import numpy as np

NEARLY_EQUAL = 5e-4  # squared distance (cosine 0.99975): copies, scaled or compressed again
START = 2.0  # distance to the nearest chosen image before there is one: that of orthogonal features
UNCERTAIN_FROM = 4  # labels per class from which on the classifier's uncertainty counts
ROWS_AT_A_TIME = 1024  # bounds the memory of distances


@dataclass(frozen=True)
class LabelOrder:
    """Images in the order in which a label helps most.

    Parameters
    ----------
    rows : ndarray of shape (n,), int64
        The images, the most helpful first.
    gains : ndarray of shape (n,), float64
        By how much each reduces the mean weighted distance of the images to their nearest chosen one.
    """

    rows: np.ndarray
    gains: np.ndarray


def coverage_order(
    image_features: np.ndarray,
    count: int,
    labelled_features: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> LabelOrder:
    """Return the images that cover all images best, one after the other.

    Parameters
    ----------
    image_features : ndarray of shape (N, D)
        Un-normalised features of the unlabelled images.
    count : int
        At most that many images. Images that are nearly equal to a chosen or labelled one are left out.
    labelled_features : ndarray of shape (M, D), optional
        Of images that have labels already: what they cover needs no other.
    weights : ndarray of shape (N,), optional
        How much it matters that an image is covered; see `uncertainty_weights`. Defaults to 1.

    Returns
    -------
    LabelOrder
        Fewer than `count` images if no other differs from those.
    """
    features = _unit(image_features)
    weights = np.ones(len(features)) if weights is None else weights.astype(np.float64)
    known = features[:0] if labelled_features is None else _unit(labelled_features)
    distances = nearest_distances(features, known)  # (N,) to the nearest chosen or labelled image
    reached = distances.copy()
    queue = [(-gain, row) for row, gain in enumerate(_all_gains(features, distances, weights))]
    heapq.heapify(queue)
    rows: list[int] = []
    gains: list[float] = []
    while queue and len(rows) < count:
        _, row = heapq.heappop(queue)
        if reached[row] < NEARLY_EQUAL:
            continue
        to_row = _distances(features, features[row : row + 1])[:, 0]
        gain = float(weights @ np.maximum(distances - to_row, 0))
        if queue and (-gain, row) > queue[0]:  # gains only fall, so a stale one that is still the best is right
            heapq.heappush(queue, (-gain, row))
            continue
        rows.append(row)
        gains.append(gain / len(features))
        distances = np.minimum(distances, to_row)
        reached = np.minimum(reached, to_row)
    return LabelOrder(np.array(rows, np.int64), np.array(gains))


def uncertainty_weights(probabilities: np.ndarray, labels: int) -> np.ndarray | None:
    """Return 1 minus the margin between the two most probable classes (N,), or None while there are few labels.

    Parameters
    ----------
    probabilities : ndarray of shape (N, C)
        Of the classes, by the present classifier.
    labels : int
        Number of labelled images that it was fitted on.
    """
    if labels < UNCERTAIN_FROM * probabilities.shape[1]:
        return None
    top = np.sort(probabilities, axis=1)[:, -2:]
    weights: np.ndarray = 1 - (top[:, 1] - top[:, 0])
    return weights


def without_nearly_equal(image_features: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the rows of images (N, D) that are not nearly equal to one of others (M, D), un-normalised."""
    return np.flatnonzero(nearest_distances(_unit(image_features), _unit(others)) >= NEARLY_EQUAL)


def nearest_chosen(image_features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the position in `rows` of the nearest chosen image of each image (N,)."""
    features = _unit(image_features)
    nearest: np.ndarray = (features @ features[rows].T).argmax(axis=1)
    return nearest


def nearest_distances(features: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the squared distance (N,) of each normalised feature to the nearest of others, at most that of the start.

    Parameters
    ----------
    features, others : ndarray of shape (N, D) and (M, D)
        Normalised.
    """
    nearest = np.full(len(features), START)
    for begin in range(0, len(others), ROWS_AT_A_TIME):
        part = _distances(features, others[begin : begin + ROWS_AT_A_TIME])
        nearest = np.minimum(nearest, part.min(axis=1))
    return nearest


def _all_gains(features: np.ndarray, distances: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return by how much each image as the next one reduces the weighted distance (N,)."""
    gains = np.empty(len(features))
    for begin in range(0, len(features), ROWS_AT_A_TIME):
        part = _distances(features, features[begin : begin + ROWS_AT_A_TIME])  # (N, rows)
        gains[begin : begin + ROWS_AT_A_TIME] = weights @ np.maximum(distances[:, None] - part, 0)
    return gains


def _distances(features: np.ndarray, others: np.ndarray) -> np.ndarray:
    distances: np.ndarray = 2 - 2 * (features @ others.T)
    return distances


def _unit(features: np.ndarray) -> np.ndarray:
    directions: np.ndarray = features / np.linalg.norm(features, axis=1, keepdims=True)
    return directions
