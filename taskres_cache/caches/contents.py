"""What a cache holds, as plain values and arrays; knows neither HDF5 nor torch.

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
    """Rows into `images/` of one few-shot split, in the order in which they were drawn; int64."""

    train: np.ndarray
    val: np.ndarray


@dataclass(frozen=True)
class TextBases:
    """What the text tower says of the classes, float32, un-normalised.

    Parameters
    ----------
    templates : (T,) prompts with one `{}` each.
    embeddings : (C, T, D).
    pre_projection, projection : (C, T, W) and (W, D), whose product the embeddings are; None for towers that do not
        end in a linear projection.
    """

    templates: tuple[str, ...]
    embeddings: np.ndarray
    pre_projection: np.ndarray | None = None
    projection: np.ndarray | None = None


def regular_base(embeddings: np.ndarray) -> np.ndarray:
    """Return the regular base (C, D): the mean over templates of un-normalised embeddings (C, T, D).

    Nothing is normalised before the mean (TaskRes, section 3.2, and its released code), unlike in a prompt ensemble.
    """
    base: np.ndarray = embeddings.mean(axis=1)  # (C, D)
    return base


class Rows(Protocol):
    """Features as far as writing them goes: an array, or what reads a slice when it is taken."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Return some rows."""


@dataclass(frozen=True)
class CacheContents:
    """All that one cache file holds.

    Parameters
    ----------
    classnames : (C,) in label order.
    class_ids : (C,) what classes go by across data sets; None when that is their names.
    paths, stamps : (N,) each image's path and what changes when its file does.
    labels, partitions : (N,) int32; uint8 as positions in `PARTITIONS`.
    image_features : (N, D) float16 or float32, un-normalised.
    augmented, augmented_rows : (M, V, D) features of augmented views, likewise, and (M,) the rows that they are of;
        None where there are no views.
    splits : (shots, seed) -> rows.
    skipped : path -> why the image was left out.
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
    """Return where the cache of a data set and a checkpoint lives."""
    return cache_dir / f"{backbone}-{pretrained}" / f"{dataset}.h5"


def listed_splits(splits: Mapping[SplitName, Split]) -> str:
    """Return the splits as a phrase: shots 1, 2 with seeds 1, 2, 3."""
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
