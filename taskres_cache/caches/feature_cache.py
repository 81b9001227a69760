"""A cache file as Python sees it: small arrays in memory, features read on demand; knows neither h5py nor torch.

Axes: N images, M train images, V augmented views, C classes, T templates, D embedding, W width of the text tower.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from taskres_cache.caches.contents import CacheContents, Split, TextBases, listed_splits, regular_base
from taskres_cache.caches.hdf5 import (
    iterate_rows,
    read_arrays,
    read_everything,
    read_files,
    read_header,
    read_rows,
)
from taskres_cache.datasets import PARTITIONS
from taskres_cache.errors import CacheError, CacheMismatchError, OptionError

Array = TypeVar("Array")
Into = Callable[[np.ndarray], Array]


class FeatureCache:
    """An open-and-shut view of a cache file: small arrays in memory, features read on demand.

    Parameters
    ----------
    path : the cache file.

    Raises
    ------
    CacheError : no such file, not a cache, a newer format, or an array that lacks or disagrees.
    CacheDamagedError : truncated, or a checksum does not match.
    """

    half = "all"  # of the classes, see `halves.CacheHalf`

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header = read_header(self.path)
        self.provenance = header.provenance
        self.created_at, self.created_by = header.created_at, header.created_by
        self.classnames, self.class_ids = header.classnames, header.class_ids
        self.labels, self.partitions = header.labels, header.partitions
        self.templates = header.templates
        self.splits = header.splits
        self.skipped = header.skipped
        self.augmented_rows = header.augmented_rows
        self.views = header.views
        self.shapes = header.shapes

    def __repr__(self) -> str:
        return f"FeatureCache({str(self.path)!r}: {len(self.labels)} images, {len(self.classnames)} classes)"

    @property
    def dim(self) -> int:
        """D, the width of the features."""
        return int(self.shapes["features/center"][1])

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

    def image_features(self, rows: np.ndarray) -> np.ndarray:
        """Return un-normalised image features (len(rows), D), float32, in the order of `rows`."""
        features = np.empty((len(rows), self.dim), dtype=np.float32)
        for positions, piece in self.pieces(rows):
            features[positions] = piece
        return features

    def pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions in `rows` and their un-normalised image features, float32, a chunk of the file at a time.

        Every chunk is read once, and memory never holds more than one.
        """
        yield from iterate_rows(self.path, "features/center", rows)

    def augmented_pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions in `rows` and the features of their augmented views (.., V, D), likewise.

        Raises
        ------
        CacheError : a row of which there are no views.
        """
        place_of = {row: place for place, row in enumerate(self.augmented_rows.tolist())}
        places = [place_of.get(row) for row in rows.tolist()]
        if None in places:
            row = int(rows[places.index(None)])
            raise CacheError(f"{self.path} has no augmented views of row {row}; add them with taskres extract --views")
        yield from iterate_rows(self.path, "features/augmented", np.array(places, np.int64))

    def stored(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return some rows of an array of the file, in their order and in the type that they are stored in."""
        return read_rows(self.path, name, rows)

    def files(self) -> list[tuple[str, str]]:
        """Return path and stamp of each image, (N,); a cache by another program may have no stamps."""
        return read_files(self.path)

    @property
    def text_features(self) -> np.ndarray:
        """The regular base (C, D): un-normalised, float32, the mean over templates."""
        return regular_base(self.text_bases().embeddings)

    def text_bases(self) -> TextBases:
        """Return the text tower's arrays."""
        arrays = read_arrays(self.path, "text/embeddings", "text/pre_projection", "text/projection")
        return TextBases(
            self.templates, arrays["text/embeddings"], arrays.get("text/pre_projection"), arrays.get("text/projection")
        )

    def contents(self) -> CacheContents:
        """Return all of the file."""
        files = self.files()
        augmented = ("features/augmented",) if self.views else ()
        arrays = read_arrays(self.path, "features/center", *augmented)
        return CacheContents(
            provenance=self.provenance,
            classnames=self.classnames,
            paths=tuple(path for path, _ in files),
            stamps=tuple(stamp for _, stamp in files),
            labels=self.labels,
            partitions=self.partitions,
            image_features=arrays["features/center"],
            text=self.text_bases(),
            splits=self.splits,
            skipped=self.skipped,
            class_ids=self.class_ids,
            augmented=arrays.get("features/augmented"),
            augmented_rows=self.augmented_rows if self.views else None,
        )

    def expect(self, remedy: str, **expected: object) -> None:
        """Raise CacheMismatchError listing each field of the provenance, or `templates`, that is not as expected."""
        has = {**asdict(self.provenance), "templates": self.templates}
        differing = {name: (has[name], wish) for name, wish in expected.items() if has[name] != wish}
        if differing:
            raise CacheMismatchError(self.path, differing, remedy)

    def verify(self) -> dict[str, int]:
        """Re-read every byte against its checksum; return array name -> bytes read. Raises CacheDamagedError."""
        return read_everything(self.path)

    def _labelled(self, rows: np.ndarray, into: Into[Any]) -> tuple[Any, Any]:
        return into(self.image_features(rows)), into(self.labels[rows].astype(np.int64))
