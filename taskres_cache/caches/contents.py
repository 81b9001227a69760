"""The contents of a cache, as plain values and arrays; knows neither HDF5 nor torch.

Axes: N images, M train images, V augmented views, C classes, T templates, D embedding, W width of the text tower.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from taskres_cache.caches.provenance import Provenance

SplitName = tuple[int, int]  # (shots, seed)


@dataclass(frozen=True)
class Split:
    """One few-shot split.

    Parameters
    ----------
    train, val : ndarray of shape (N,), int64
        Rows of `images/`, in the order in which they were drawn.
    """

    train: np.ndarray
    val: np.ndarray


@dataclass(frozen=True)
class TextBases:
    """Text features of the classes, from which bases are built.

    Parameters
    ----------
    templates : tuple of str
        Prompts (T,) with one `{}` each.
    embeddings : ndarray of shape (C, T, D), float32
        Text features, un-normalised.
    pre_projection : ndarray of shape (C, T, W), float32, or None
        Input of the text tower's projection; None for towers that do not end in a linear projection.
    projection : ndarray of shape (W, D), float32, or None
        `embeddings = pre_projection @ projection`.
    """

    templates: tuple[str, ...]
    embeddings: np.ndarray
    pre_projection: np.ndarray | None = None
    projection: np.ndarray | None = None


def regular_base(embeddings: np.ndarray) -> np.ndarray:
    """Return the regular base: the mean of the text features over the templates.

    Parameters
    ----------
    embeddings : ndarray of shape (C, T, D)
        Text features, un-normalised. Nothing is normalised before the mean (TaskRes, section 3.2, and its released
        code), unlike in a prompt ensemble.

    Returns
    -------
    ndarray of shape (C, D)
        The base, un-normalised.
    """
    base: np.ndarray = embeddings.mean(axis=1)  # (C, D)
    return base


class Rows(Protocol):
    """Features to be written: an array, or an object that reads a slice when asked for it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, rows first."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Return a slice of the rows."""


@dataclass(frozen=True)
class CacheContents:
    """Everything that one cache file stores.

    Parameters
    ----------
    provenance : Provenance
        What the cache was made from.
    classnames : tuple of str
        Class names (C,) in label order.
    paths : tuple of str
        Path of each image (N,).
    stamps : tuple of str
        Stamp of each image (N,), which changes when the file changes.
    labels : ndarray of shape (N,), int32
        Positions in `classnames`.
    partitions : ndarray of shape (N,), uint8
        Positions in `PARTITIONS`.
    image_features : Rows of shape (N, D), float16 or float32
        Image features, un-normalised.
    text : TextBases
        Text features.
    splits : dict of (int, int) to Split
        Few-shot splits by shots and seed.
    skipped : dict of str to str
        Path of each image that was left out, and why.
    class_ids : tuple of str, optional
        Identifiers (C,) of the classes across data sets. None if these are the names.
    augmented : Rows of shape (M, V, D), float16 or float32, optional
        Features of augmented views, un-normalised. None without views.
    augmented_rows : ndarray of shape (M,), optional
        Rows of the images that the views belong to.
    """

    provenance: Provenance
    classnames: tuple[str, ...]
    paths: tuple[str, ...]
    stamps: tuple[str, ...]
    labels: np.ndarray
    partitions: np.ndarray
    image_features: Rows
    text: TextBases
    splits: dict[SplitName, Split]
    skipped: dict[str, str] = field(default_factory=dict)
    class_ids: tuple[str, ...] | None = None
    augmented: Rows | None = None
    augmented_rows: np.ndarray | None = None


def cache_path(cache_dir: Path, backbone: str, pretrained: str, dataset: str) -> Path:
    """Return the path of the cache of a data set and a checkpoint."""
    return cache_dir / f"{backbone}-{pretrained}" / f"{dataset}.h5"


def listed_splits(splits: Mapping[SplitName, Split]) -> str:
    """Return the splits as text, such as "shots 1, 2 with seeds 1, 2, 3"."""
    seeds_by_shots: dict[int, list[int]] = {}
    for shots, seed in sorted(splits):
        seeds_by_shots.setdefault(shots, []).append(seed)
    shots_by_seeds: dict[tuple[int, ...], list[int]] = {}
    for shots, seeds in seeds_by_shots.items():
        shots_by_seeds.setdefault(tuple(seeds), []).append(shots)
    phrases = [f"shots {_joined(shots)} with seeds {_joined(seeds)}" for seeds, shots in shots_by_seeds.items()]
    return "; ".join(phrases) or "none"


def _joined(numbers: Any) -> str:
    return ", ".join(str(number) for number in numbers)
