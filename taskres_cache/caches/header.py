"""The small arrays and attributes of a cache file, and whether they agree; knows neither HDF5 nor torch.

Axes: N images, M train images, V augmented views, C classes, T templates, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskres_cache.caches.contents import DEFAULT_PROMPTS, Split, SplitName
from taskres_cache.caches.layout import split_array
from taskres_cache.caches.provenance import Provenance
from taskres_cache.caches.schema import REMEDY
from taskres_cache.datasets import PARTITIONS
from taskres_cache.errors import CacheError
from taskres_cache.system.names import shown


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
        Templates (T,); empty for a cache without text.
    splits : dict of (int, int) to Split
        Few-shot splits by shots and seed.
    skipped : dict of str to str
        Path of each image that was left out, and why.
    augmented_rows : ndarray of shape (M,), int64
        Rows with augmented views; empty without views.
    family_rows : dict of str to ndarray of shape (M,), int64
        Rows with augmented views of each further family, by its name.
    family_settings : dict of str to dict
        How the views of each further family were made.
    prompt_labels : dict of str to ndarray of shape (P,), int64
        Class of each prompt of each further set of prompts, by the name of the set.
    shapes : dict of str to tuple of int
        Shape of every array in the file, by its name.
    shown_names : tuple of str or None
        Names (C,) that the templates were filled with; None if these are the class names.
    default_prompts : str
        The set of prompts that fits use unless told otherwise.
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
    family_rows: dict[str, np.ndarray]
    family_settings: dict[str, dict[str, Any]]
    prompt_labels: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    shown_names: tuple[str, ...] | None
    default_prompts: str

    @property
    def views(self) -> int:
        """V, the number of augmented views per train image; 0 without views."""
        shape = self.shapes.get("features/augmented", ())
        return shape[1] if len(shape) == 3 else 0


def check_header(path: Path, header: Header) -> None:
    """Raise CacheError if values are out of range, a split takes rows of another partition, or all names are alike."""
    _check_ranges(path, header)
    _check_partitions(path, header)
    _check_families(path, header)
    for name, labels in header.prompt_labels.items():
        _check_prompts(path, name, labels, len(header.classnames))
    if header.default_prompts not in (DEFAULT_PROMPTS, *header.prompt_labels):
        name = shown(header.default_prompts)
        raise CacheError(f"{path}: attribute default_prompts is {name}, which is no set of prompts of it; {REMEDY}")
    if len(set(header.classnames)) == 1 and header.class_ids is None:
        raise CacheError(f"{path}: all {len(header.classnames)} class names are {header.classnames[0]!r}; {REMEDY}")


def _check_ranges(path: Path, header: Header) -> None:
    """Raise CacheError if a label or row number is out of range."""
    images, classes = len(header.labels), len(header.classnames)
    parts = [part for split in header.splits.values() for part in (split.train, split.val)]
    for name, numbers, end in (
        ("images/label", header.labels, classes),
        ("images/partition", header.partitions, len(PARTITIONS)),
        ("splits/*", np.concatenate([np.zeros(0, np.int64), *parts]), images),
        ("features/augmented_rows", header.augmented_rows, images),
        *((f"views/{name}/rows", rows, images) for name, rows in header.family_rows.items()),
    ):
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < end:
            raise CacheError(f"{path}: {name} has values outside 0-{end - 1}; {REMEDY}")


def _check_partitions(path: Path, header: Header) -> None:
    """Raise CacheError if training or validation rows are rows of another partition, such as test images."""
    taken = [("features/augmented_rows", "train", header.augmented_rows)]
    taken += [(f"views/{name}/rows", "train", rows) for name, rows in header.family_rows.items()]
    for split_name, split in header.splits.items():
        taken += [(split_array(split_name, part), part, getattr(split, part)) for part in ("train", "val")]
    for name, part, rows in taken:
        others = header.partitions[rows] != PARTITIONS.index(part)
        if others.any():
            row = int(rows[others.argmax()])
            raise CacheError(
                f"{path}: {name} has row {row}, a {PARTITIONS[header.partitions[row]]} image, expected {part} images "
                f"only; {REMEDY}"
            )


def _check_families(path: Path, header: Header) -> None:
    """Raise CacheError if a family of views has no settings, or the settings are no JSON object."""
    for name in header.family_rows:
        if not isinstance(header.family_settings.get(name), dict):
            raise CacheError(f"{path}: attribute view_families has no settings of views/{name}; {REMEDY}")


def _check_prompts(path: Path, name: str, labels: np.ndarray, classes: int) -> None:
    """Raise CacheError unless every class has prompts, and prompts are in label order, as methods expect."""
    name = f"prompts/{name}/class"
    if not 0 <= labels.min() <= labels.max() < classes:
        raise CacheError(f"{path}: {name} has values outside 0-{classes - 1}; {REMEDY}")
    if (np.diff(labels) < 0).any():
        raise CacheError(f"{path}: {name} is not ascending, expected prompts in label order; {REMEDY}")
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise CacheError(f"{path}: {name} has no prompt of class {int(counts.argmin())}; {REMEDY}")
