"""The small arrays and attributes of a cache file, and whether they agree; knows neither HDF5 nor torch.

Axes: N images, M train images, V augmented views, C classes, T templates, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taskres_cache.caches.contents import Split, SplitName
from taskres_cache.caches.provenance import Provenance
from taskres_cache.errors import CacheError


@dataclass(frozen=True)
class Header:
    """What a cache file stores apart from features, text features, paths and stamps.

    Parameters
    ----------
    provenance : Provenance
        What the cache was made from.
    created_at, created_by : str
        UTC time in ISO 8601, and the program and version that wrote the file.
    classnames : tuple of str
        Class names (C,) in label order.
    class_ids : tuple of str or None
        Identifiers (C,) of the classes; None if these are the names.
    labels : ndarray of shape (N,), int32
        Label of each image.
    partitions : ndarray of shape (N,), uint8
        Positions in `PARTITIONS`.
    templates : tuple of str
        Templates (T,).
    splits : dict of (int, int) to Split
        Few-shot splits by shots and seed.
    skipped : dict of str to str
        Path of each image that was left out, and why.
    augmented_rows : ndarray of shape (M,), int64
        Rows with augmented views; empty without views.
    shapes : dict of str to tuple of int
        Shape of every array in the file, by its name.
    """

    provenance: Provenance
    created_at: str
    created_by: str
    classnames: tuple[str, ...]
    class_ids: tuple[str, ...] | None
    labels: np.ndarray
    partitions: np.ndarray
    templates: tuple[str, ...]
    splits: dict[SplitName, Split]
    skipped: dict[str, str]
    augmented_rows: np.ndarray
    shapes: dict[str, tuple[int, ...]]

    @property
    def views(self) -> int:
        """V, the number of augmented views per train image; 0 without views."""
        shape = self.shapes.get("features/augmented", ())
        return shape[1] if len(shape) == 3 else 0


def check_header(path: Path, header: Header) -> None:
    """Raise CacheError if an array is missing, has a shape that does not match the others, or is out of range."""
    _check_shapes(path, header)
    _check_ranges(path, header)


def _check_shapes(path: Path, header: Header) -> None:
    """Raise CacheError if an array is missing or its shape does not match the others."""
    images, classes = len(header.labels), len(header.classnames)
    dim = header.shapes.get("features/center", ())[1:2]
    views = (len(header.augmented_rows), header.views, *dim)
    expected = {
        **({} if header.class_ids is None else {"class_ids": (classes,)}),
        "images/path": (images,),
        "images/partition": (images,),
        "features/center": (images, *dim),
        "text/embeddings": (classes, len(header.templates), *dim),
        **({"features/augmented": views} if header.views else {}),
    }
    for name, shape in expected.items():
        if name not in header.shapes:
            raise CacheError(f"{path} has no array {name}; make the cache again")
        found = header.shapes[name]
        if found != shape:
            raise CacheError(f"{path}: {name} has shape {found}, expected {shape}; make the cache again")


def _check_ranges(path: Path, header: Header) -> None:
    """Raise CacheError if a label or row number is out of range."""
    images, classes = len(header.labels), len(header.classnames)
    parts = [part for split in header.splits.values() for part in (split.train, split.val)]
    for name, numbers, end in (
        ("images/label", header.labels, classes),
        ("splits/*", np.concatenate([np.zeros(0, np.int64), *parts]), images),
        ("features/augmented_rows", header.augmented_rows, images),
    ):
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < end:
            raise CacheError(f"{path}: {name} has values outside 0-{end - 1}; make the cache again")
