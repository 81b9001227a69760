"""The images of a cache by partition and few-shot split, handed out with their labels to any method. Knows no HDF5.

Axes: N images, D embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from taskres_cache.caches.contents import Split, SplitName, listed_splits
from taskres_cache.datasets import PARTITIONS
from taskres_cache.errors import CacheError, OptionError

Array = TypeVar("Array")
Into = Callable[[np.ndarray], Array]


class LabelledImages(ABC):
    """Images whose features are read on demand.

    Parameters
    ----------
    path : what messages call them.
    labels, partitions : (N,) int32; uint8 as positions in `PARTITIONS`.
    splits : (shots, seed) -> rows.
    """

    path: Path
    labels: np.ndarray
    partitions: np.ndarray
    splits: dict[SplitName, Split]

    @abstractmethod
    def image_features(self, rows: np.ndarray) -> np.ndarray:
        """Return un-normalised image features (len(rows), D), float32, in the order of `rows`."""

    def rows(self, partition: str) -> np.ndarray:
        """Return the rows of a partition (train, val or test), int64."""
        return np.flatnonzero(self.partitions == PARTITIONS.index(partition))

    def split(self, shots: int, seed: int) -> Split:
        """Return a few-shot split; raises OptionError naming those the cache has, CacheError for an empty one."""
        split = self.splits.get((shots, seed))
        if split is None and len(self.rows("train")) == 0:
            raise OptionError(
                f"{self.path} holds test images only, nothing to train on; fit on another cache and test on this one: "
                "taskres eval RUN --on CACHE"
            )
        if split is None:
            raise OptionError(
                f"{self.path} has no split of {shots} shots, seed {seed}; it has {listed_splits(self.splits)}; add "
                f"it with the command that made the cache and --shots {shots} --seeds {seed}"
            )
        if len(split.train) == 0:
            raise CacheError(
                f"{self.path}: none of the train images of {shots} shots, seed {seed} could be read; mend the images "
                "and run the command that made the cache again"
            )
        return split

    @overload
    def train(self, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def train(self, shots: int, seed: int, into: Into[Array]) -> tuple[Array, Array]: ...
    def train(self, shots: int, seed: int, into: Into[Any] = np.asarray) -> tuple[Any, Any]:
        """Return the train images of a split: un-normalised features (N, D), float32, and labels (N,), int64.

        Parameters
        ----------
        shots, seed : the split, see `split`; its images themselves, no augmented views.
        into : what both arrays are handed to, such as `torch.from_numpy`, which copies nothing.
        """
        return self._labelled(self.split(shots, seed).train, into)

    @overload
    def val(self, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def val(self, shots: int, seed: int, into: Into[Array]) -> tuple[Array, Array]: ...
    def val(self, shots: int, seed: int, into: Into[Any] = np.asarray) -> tuple[Any, Any]:
        """Return the val images of a split, by which methods may be chosen, as `train` does; N is 0 without any."""
        return self._labelled(self.split(shots, seed).val, into)

    @overload
    def test(self) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def test(self, into: Into[Array]) -> tuple[Array, Array]: ...
    def test(self, into: Into[Any] = np.asarray) -> tuple[Any, Any]:
        """Return all test images, by which nothing may be chosen, as `train` does."""
        return self._labelled(self.rows("test"), into)

    def _labelled(self, rows: np.ndarray, into: Into[Any]) -> tuple[Any, Any]:
        return into(self.image_features(rows)), into(self.labels[rows].astype(np.int64))
