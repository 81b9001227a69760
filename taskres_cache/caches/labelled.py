"""Images with their labels, by partition and by few-shot split, for any method; knows neither HDF5 nor torch.

Axes: N images, D embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from taskres_cache.caches.contents import Split, SplitName, listed_splits
from taskres_cache.datasets import PARTITIONS, shots_text
from taskres_cache.errors import CacheError, OptionError

Array = TypeVar("Array")
Into = Callable[[np.ndarray], Array]


class LabelledImages(ABC):
    """Labelled images whose features are read on demand.

    Attributes
    ----------
    path : Path
        Name of the images in messages.
    labels : ndarray of shape (N,), int32
        Label of each image.
    partitions : ndarray of shape (N,), uint8
        Positions in `PARTITIONS`.
    splits : dict of (int, int) to Split
        Rows of the few-shot splits, by shots and seed.
    """

    path: Path
    labels: np.ndarray
    partitions: np.ndarray
    splits: dict[SplitName, Split]

    @abstractmethod
    def image_features(self, rows: np.ndarray) -> np.ndarray:
        """Return the image features (N, D) of some rows, un-normalised, float32."""

    def rows(self, partition: str) -> np.ndarray:
        """Return the rows of a partition.

        Parameters
        ----------
        partition : {"train", "val", "test"}
            Name of the partition.

        Returns
        -------
        ndarray of shape (N,), int64
            Row numbers, ascending.
        """
        return np.flatnonzero(self.partitions == PARTITIONS.index(partition))

    def split(self, shots: int, seed: int) -> Split:
        """Return the rows of a few-shot split.

        Parameters
        ----------
        shots, seed : int
            Training images per class, ALL_SHOTS for all, and the seed of the draw.

        Returns
        -------
        Split
            Rows of the training and validation images, int64, in the order of the draw.

        Raises
        ------
        OptionError
            The cache has no such split; the message lists the available ones.
        CacheError
            None of the split's training images could be read.
        """
        split, count = self.splits.get((shots, seed)), shots_text(shots)
        if split is None and len(self.rows("train")) == 0:
            raise OptionError(
                f"{self.path} has test images only and cannot be fitted; fit on another cache and evaluate the run on "
                "this one: taskres eval RUN --on CACHE"
            )
        if split is None:
            raise OptionError(
                f"{self.path} has no split with {count} shots and seed {seed} (available: "
                f"{listed_splits(self.splits)}); add it: run the command that made the cache with --shots {count} "
                f"--seeds {seed}"
            )
        if len(split.train) == 0:
            raise CacheError(
                f"{self.path}: none of the training images with {count} shots and seed {seed} could be read; fix the "
                "images and run the command that made the cache again"
            )
        return split

    @overload
    def train(self, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def train(self, shots: int, seed: int, into: Into[Array]) -> tuple[Array, Array]: ...
    def train(self, shots: int, seed: int, into: Into[Any] = np.asarray) -> tuple[Any, Any]:
        """Return the training images of a few-shot split.

        Parameters
        ----------
        shots, seed : int
            Training images per class, ALL_SHOTS for all, and the seed of the draw.
        into : callable, optional
            Conversion that is applied to both arrays, such as `torch.from_numpy`, which copies nothing.

        Returns
        -------
        image_features : ndarray of shape (N, D), float32
            Un-normalised; without augmented views.
        labels : ndarray of shape (N,), int64
            Positions in `classnames`.

        Raises
        ------
        OptionError
            The cache has no such split; the message lists the available ones.
        CacheError
            None of the split's training images could be read.
        """
        return self._labelled(self.split(shots, seed).train, into)

    @overload
    def val(self, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def val(self, shots: int, seed: int, into: Into[Array]) -> tuple[Array, Array]: ...
    def val(self, shots: int, seed: int, into: Into[Any] = np.asarray) -> tuple[Any, Any]:
        """Return the validation images of a few-shot split, on which methods may be selected.

        Parameters, returned arrays and errors are those of `train`; N is 0 if the data set has no validation images.
        """
        return self._labelled(self.split(shots, seed).val, into)

    @overload
    def test(self) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def test(self, into: Into[Array]) -> tuple[Array, Array]: ...
    def test(self, into: Into[Any] = np.asarray) -> tuple[Any, Any]:
        """Return all test images, on which nothing may be selected.

        Parameters
        ----------
        into : callable, optional
            Conversion that is applied to both arrays, such as `torch.from_numpy`, which copies nothing.

        Returns
        -------
        image_features : ndarray of shape (N, D), float32
            Un-normalised.
        labels : ndarray of shape (N,), int64
            Positions in `classnames`.
        """
        return self._labelled(self.rows("test"), into)

    def _labelled(self, rows: np.ndarray, into: Into[Any]) -> tuple[Any, Any]:
        return into(self.image_features(rows)), into(self.labels[rows].astype(np.int64))
