"""A small stratified sample of a data set, on which models are tried."""

from dataclasses import dataclass
from random import Random

import numpy as np

from taskres_cache.datasets import Dataset
from taskres_cache.datasets.dataset import Item
from taskres_cache.errors import DatasetError

MOST_PER_CLASS = 20
LEAST_PER_CLASS = 4  # below, cross-validation says little about a class; classes are left out instead


@dataclass(frozen=True)
class Sample:
    """Some images of a data set.

    Parameters
    ----------
    paths : tuple of str, N entries
        The images, in the data set's source.
    labels : ndarray of shape (N,), int64
        Positions in `classnames`.
    classnames : tuple of str, C entries
        The classes of the sample.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    classnames: tuple[str, ...]


def stratified_sample(dataset: Dataset, images: int = 500, seed: int = 0) -> Sample:
    """Draw about as many images of each class, from train and val, so that test stays unseen.

    A test-only data set has only test images to draw from.

    Parameters
    ----------
    dataset : Dataset
        The data set.
    images : int, optional
        About as many images in total: 4 to 20 per class. If there are too many classes for 4 of each, some classes are
        drawn too.
    seed : int, optional
        Of the draw.

    Raises
    ------
    DatasetError
        Fewer than two classes have two images.
    """
    draw = Random(seed)
    by_label: dict[int, list[Item]] = {}
    for item in dataset.test if dataset.test_only else (*dataset.train, *dataset.val):
        by_label.setdefault(item.label, []).append(item)
    usable = sorted(label for label, items in by_label.items() if len(items) > 1)
    if len(usable) < 2:
        raise DatasetError(f"data set {dataset.name!r} needs two classes with two images outside test; add images")
    most_classes = max(2, images // LEAST_PER_CLASS)
    chosen = usable if len(usable) <= most_classes else sorted(draw.sample(usable, most_classes))
    count = min(max(images // len(chosen), LEAST_PER_CLASS), MOST_PER_CLASS)
    drawn = [draw.sample(by_label[label], min(count, len(by_label[label]))) for label in chosen]
    labels = np.repeat(np.arange(len(chosen)), [len(items) for items in drawn])
    paths = tuple(item.path for items in drawn for item in items)
    return Sample(paths, labels, tuple(dataset.classnames[label] for label in chosen))
