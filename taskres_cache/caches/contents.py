"""The contents of a cache, as plain values and arrays; knows neither HDF5 nor torch.

Axes: N images, M train images, V augmented views, C classes, T templates, P prompts of all classes, D embedding,
W and I widths of the text and the image tower.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets.labels.changes import Change
from taskres_cache.datasets.sampling import shots_text

SplitName = tuple[int, int]  # (shots, seed)
WIDE = "wide"  # the family of views that format 1 has: TaskRes's own crops
DEFAULT_PROMPTS = "default"  # the set of prompts that format 1 has: templates filled with the names of the classes
DESCRIPTIONS = "descriptions"  # the set of a cache that was extracted with complete sentences in place of templates


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

    @property
    def base(self) -> np.ndarray:
        """The regular base (C, D), see `regular_base`."""
        return regular_base(self.embeddings)

    @property
    def base_inputs(self) -> np.ndarray | None:
        """The mean input (C, W) of the text projection of each class; None without inputs."""
        return None if self.pre_projection is None else regular_base(self.pre_projection)


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


class ImageProjection(NamedTuple):
    """The last linear map of the image tower: `features = pre_projection @ weights + bias`.

    Parameters
    ----------
    weights : ndarray of shape (I, D), float32
        The projection.
    bias : ndarray of shape (D,), float32, or None
        Added after it; None for towers without a bias.
    """

    weights: np.ndarray
    bias: np.ndarray | None = None

    def applied(self, pre_projection: np.ndarray) -> np.ndarray:
        """Return the features (..., D), float32, of inputs (..., I)."""
        features: np.ndarray = pre_projection.astype(np.float32, copy=False) @ self.weights
        return features if self.bias is None else features + self.bias


@dataclass(frozen=True)
class ViewFamily:
    """Augmented views of the train images that were made with the same settings.

    Parameters
    ----------
    settings : dict
        How the views were made: seed, scale, ratio, flips, interpolation.
    rows : ndarray of shape (M,), int64
        Rows of the images that the views belong to.
    image_features : Rows of shape (M, V, D), float16 or float32
        Un-normalised.
    pre_projection : Rows of shape (M, V, I), same type, or None
        Inputs of the image projection.
    """

    settings: dict[str, Any]
    rows: np.ndarray
    image_features: Rows
    pre_projection: Rows | None = None


@dataclass(frozen=True)
class PromptSet:
    """Text features of any number of prompts per class.

    Parameters
    ----------
    texts : tuple of str
        The prompts (P,).
    labels : ndarray of shape (P,), int64
        The class of each prompt, ascending; every class has at least one.
    embeddings : ndarray of shape (P, D), float32
        Text features, un-normalised.
    pre_projection : ndarray of shape (P, W), float32, or None
        Inputs of the text projection, as in `TextBases`.
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    embeddings: np.ndarray
    pre_projection: np.ndarray | None = None

    @property
    def base(self) -> np.ndarray:
        """The regular base (C, D): the mean of the text features of each class, as `regular_base`."""
        return self._means(self.embeddings)

    @property
    def base_inputs(self) -> np.ndarray | None:
        """The mean input (C, W) of the text projection of each class; None without inputs."""
        return None if self.pre_projection is None else self._means(self.pre_projection)

    def by_class(self) -> tuple[tuple[str, ...], ...]:
        """Return the prompts of each class (C,)."""
        ends = np.cumsum(np.bincount(self.labels)).tolist()
        return tuple(self.texts[start:end] for start, end in zip([0, *ends], ends, strict=False))

    def _means(self, rows: np.ndarray) -> np.ndarray:
        """Return the mean of the rows of each class."""
        counts = np.bincount(self.labels)
        if (counts == counts[0]).all():  # the same bits as those of a matrix of classes and templates
            return regular_base(rows.reshape(len(counts), counts[0], -1))
        ends = np.cumsum(counts)
        return np.stack([rows[end - count : end].mean(axis=0) for end, count in zip(ends, counts, strict=True)])


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
    text : TextBases or None
        Text features; None for imported features without text.
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
    image_projection : ImageProjection, optional
        The last linear map of the image tower; present together with `pre_projection`.
    pre_projection : Rows of shape (N, I), same type as `image_features`, optional
        Inputs of the image projection.
    augmented_pre_projection : Rows of shape (M, V, I), same type, optional
        Inputs of the image projection for `augmented`.
    families : dict of str to ViewFamily, optional
        Further families of augmented views by name.
    prompts : dict of str to PromptSet, optional
        Further sets of prompts by name.
    corrections : tuple of Change, optional
        Images whose label or part was corrected after the data set was read.
    shown_names : tuple of str, optional
        Names (C,) that the templates were filled with. None if these are the class names.
    default_prompts : str, optional
        The set that fits use unless told otherwise.
    """

    provenance: Provenance
    classnames: tuple[str, ...]
    paths: tuple[str, ...]
    stamps: tuple[str, ...]
    labels: np.ndarray
    partitions: np.ndarray
    image_features: Rows
    text: TextBases | None
    splits: dict[SplitName, Split]
    skipped: dict[str, str] = field(default_factory=dict)
    class_ids: tuple[str, ...] | None = None
    augmented: Rows | None = None
    augmented_rows: np.ndarray | None = None
    image_projection: ImageProjection | None = None
    pre_projection: Rows | None = None
    augmented_pre_projection: Rows | None = None
    families: dict[str, ViewFamily] = field(default_factory=dict)
    prompts: dict[str, PromptSet] = field(default_factory=dict)
    corrections: tuple[Change, ...] = ()
    shown_names: tuple[str, ...] | None = None
    default_prompts: str = DEFAULT_PROMPTS


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
    phrases = [
        f"shots {', '.join(map(shots_text, shots))} with seeds {', '.join(map(str, seeds))}"
        for seeds, shots in shots_by_seeds.items()
    ]
    return "; ".join(phrases) or "none"
