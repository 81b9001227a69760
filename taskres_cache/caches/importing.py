"""Import embeddings from elsewhere: arrays in, cache out.

Axes: N images of a partition, C classes, T templates, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from taskres_cache.caches.contents import CacheContents, Split, TextBases, cache_path
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.caches.provenance import UNKNOWN, Provenance
from taskres_cache.datasets import (
    GIVEN_SPLIT,
    PAPER_SEEDS,
    PAPER_SHOTS,
    PARTITIONS,
    refuse_unusable_splits,
    sample_few_shot,
    shortage_notes,
)
from taskres_cache.errors import ArraysError, OptionError
from taskres_cache.system.names import shown, unsafe_name

REQUIRED = ("train_features", "train_labels", "test_features", "test_labels", "text_features", "classnames")
OPENAI_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class ImportOptions:
    """Names and few-shot splits of imported arrays.

    Parameters
    ----------
    name : str
        Name of the data set.
    backbone, pretrained : str
        Free names for the model and checkpoint behind the features; they are part of the cache's path.
    shots, seeds : tuple of int
        Few-shot splits to draw.

    Raises
    ------
    OptionError
        A shot count is not positive, there is no shot count or seed, or a name cannot be part of a path.
    """

    name: str
    backbone: str = "imported"
    pretrained: str = "arrays"
    shots: tuple[int, ...] = PAPER_SHOTS
    seeds: tuple[int, ...] = PAPER_SEEDS

    def __post_init__(self) -> None:
        refuse_unusable_splits(self.shots, self.seeds)
        for option in ("name", "backbone", "pretrained"):
            fault = unsafe_name(getattr(self, option))
            if fault is not None:
                raise OptionError(
                    f"{option} {shown(getattr(self, option))} {fault}; expected a plain name, as part of a path"
                )


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file; nothing is ever unpickled.

    Raises
    ------
    ArraysError
        The file does not exist, is not an .npz file, or contains pickled objects.
    """
    if not file.is_file():
        raise ArraysError(f"{file} does not exist; pass an .npz file written with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        hint = (
            "save strings as a string array, not as objects" if "pickle" in str(error) else "write it with numpy.savez"
        )
        raise ArraysError(f"{file} is not a usable .npz file ({' '.join(str(error).split())}); {hint}") from error


@dataclass(frozen=True)
class Import:
    """Result of an import.

    Parameters
    ----------
    path : Path
        The cache file.
    images, classes : int
        Their numbers.
    notes : tuple of str
        Notes for the user, such as classes with fewer images than shots.
    """

    path: Path
    images: int
    classes: int
    notes: tuple[str, ...]


def import_contents(arrays: Mapping[str, np.ndarray], options: ImportOptions, cache_dir: Path) -> Import:
    """Check arrays and write them as a cache.

    An earlier import with the same name is replaced. An extracted cache never is, because it took compute to make.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        See `contents_of_arrays`.
    options : ImportOptions
        Names and few-shot splits.
    cache_dir : Path
        Folder of all caches.

    Returns
    -------
    Import
        The cache file, its counts and notes.

    Raises
    ------
    ArraysError
        See `contents_of_arrays`.
    CacheMismatchError
        An extracted cache already has this path.
    """
    contents = contents_of_arrays(arrays, options)
    path = cache_path(cache_dir, options.backbone, options.pretrained, options.name)
    if path.exists():
        FeatureCache(path).expect("choose another --name", weights_sha256=UNKNOWN)
    write_cache(path, contents)
    train_labels = contents.labels[contents.partitions == PARTITIONS.index("train")].tolist()
    notes = shortage_notes(contents.classnames, train_labels, max(options.shots))
    return Import(path, len(contents.paths), len(contents.classnames), notes)


def contents_of_arrays(arrays: Mapping[str, np.ndarray], options: ImportOptions) -> CacheContents:
    """Check that arrays agree with each other and return them as the contents of a cache.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        `{train,val,test}_features` (N, D), floating point, normalised or not; `{train,val,test}_labels` (N,), integer;
        `text_features` (C, D) or (C, T, D); `classnames` (C,). Optional: the val arrays, `templates` (T,), and
        `logit_scale`, the multiplier (default 100).
    options : ImportOptions
        Names and few-shot splits.

    Raises
    ------
    ArraysError
        An array is missing, shapes do not match, a label is out of range, a class has no training image, or features
        are NaN, infinite or all zero.
    """
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise ArraysError(
            f"missing arrays: {', '.join(missing)}; expected {', '.join(REQUIRED)} and optionally val_features, "
            "val_labels"
        )
    present = [partition for partition in PARTITIONS if f"{partition}_features" in arrays]
    classnames = tuple(str(name) for name in arrays["classnames"].reshape(-1))
    text = _text_features(arrays, len(classnames))
    labels = {partition: _labels(arrays, partition, len(classnames)) for partition in present}
    features = {partition: _features(arrays, partition, labels[partition], text.shape[-1]) for partition in present}
    _refuse_classes(classnames, labels["train"])
    sizes = [len(labels[partition]) for partition in present]
    return CacheContents(
        provenance=_provenance(options, _logit_scale(arrays)),
        classnames=classnames,
        paths=tuple(f"{partition}/{row}" for partition in present for row in range(len(labels[partition]))),
        stamps=("imported",) * sum(sizes),
        labels=np.concatenate([labels[partition] for partition in present]),
        partitions=np.repeat([PARTITIONS.index(partition) for partition in present], sizes).astype(np.uint8),
        image_features=np.concatenate([features[partition] for partition in present]),
        text=TextBases(_templates(arrays, text.shape[1]), text),
        splits=_splits(labels, options.shots, options.seeds),
    )


def _text_features(arrays: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
    """Return text features as (C, T, D) float32."""
    text = arrays["text_features"]
    if text.ndim not in (2, 3) or len(text) != classes or 0 in text.shape:
        raise ArraysError(
            f"text_features has shape {text.shape}, expected ({classes}, D) or ({classes}, T, D): one row per "
            "class name"
        )
    text = text.reshape(classes, -1, text.shape[-1])
    _refuse_unusable("text_features", text.reshape(-1, text.shape[-1]))
    return text.astype(np.float32)


def _features(arrays: Mapping[str, np.ndarray], partition: str, labels: np.ndarray, dim: int) -> np.ndarray:
    name = f"{partition}_features"
    features = arrays[name]
    if features.ndim != 2 or len(features) != len(labels):
        raise ArraysError(
            f"{name} has shape {features.shape}, expected ({len(labels)}, {dim}): one row per label in "
            f"{partition}_labels"
        )
    if features.shape[1] != dim:
        raise ArraysError(
            f"{name} has {features.shape[1]} columns and text_features has {dim}; both must come from the same model"
        )
    _refuse_unusable(name, features)
    return features.astype(np.float32)


def _labels(arrays: Mapping[str, np.ndarray], partition: str, classes: int) -> np.ndarray:
    """Return labels as (N,) int32."""
    name = f"{partition}_labels"
    if name not in arrays:
        raise ArraysError(f"{partition}_features is given but {name} is missing; add it")
    labels = arrays[name]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ArraysError(f"{name} has shape {labels.shape} and type {labels.dtype}, expected integers of shape (N,)")
    if len(labels) == 0:
        raise ArraysError(f"{name} is empty; train and test need images, and val can be left out")
    if labels.min() < 0 or labels.max() >= classes:
        raise ArraysError(
            f"{name} has labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}: positions in "
            f"the {classes} classnames"
        )
    return labels.astype(np.int32)


def _refuse_unusable(name: str, features: np.ndarray) -> None:
    """Raise ArraysError for the first row with NaN, infinite or only zero values (zeros have no direction)."""
    if not np.issubdtype(features.dtype, np.floating):
        raise ArraysError(f"{name} has type {features.dtype}, expected floating-point features")
    with np.errstate(over="ignore"):
        finite = np.isfinite(features.astype(np.float32)).all(axis=-1)
    if not finite.all():
        raise ArraysError(
            f"{name}: row {int(np.argmin(finite))} has NaN or infinite values; remove it or compute it again"
        )
    lengths = np.abs(features).max(axis=-1)
    if not lengths.all():
        raise ArraysError(
            f"{name}: row {int(np.argmin(lengths))} has only zeros and so no direction; remove it or compute it again"
        )


def _refuse_classes(classnames: Sequence[str], train_labels: np.ndarray) -> None:
    if len(classnames) < 2:
        raise ArraysError(f"classnames has length {len(classnames)}, expected at least 2")
    if len(set(classnames)) < len(classnames):
        twice = next(name for name in classnames if list(classnames).count(name) > 1)
        raise ArraysError(f"class name {twice!r} occurs twice in classnames; give every class its own name")
    empty = sorted(set(range(len(classnames))) - set(train_labels.tolist()))
    if empty:
        raise ArraysError(f"class {classnames[empty[0]]!r} has no training image; add one or remove the class")


def _logit_scale(arrays: Mapping[str, np.ndarray]) -> float:
    value = arrays.get("logit_scale", np.array(OPENAI_LOGIT_SCALE))
    if value.size != 1 or not 0 < float(value.reshape(())) < float("inf"):
        raise ArraysError(f"logit_scale is {value!r}, expected one positive number: the multiplier, not its logarithm")
    return float(value.reshape(()))


def _templates(arrays: Mapping[str, np.ndarray], count: int) -> tuple[str, ...]:
    if "templates" not in arrays:
        return tuple(f"imported text features {number}" for number in range(count))
    templates = tuple(str(template) for template in arrays["templates"].reshape(-1))
    if len(templates) != count:
        raise ArraysError(f"templates has length {len(templates)}, but text_features has {count} per class")
    return templates


def _splits(
    labels: Mapping[str, np.ndarray], shots: Sequence[int], seeds: Sequence[int]
) -> dict[tuple[int, int], Split]:
    """Return the few-shot splits as rows of the cache, in which val follows train."""
    train, val = labels["train"].tolist(), labels["val"].tolist() if "val" in labels else []
    drawn = {(count, seed): sample_few_shot(train, val, count, seed) for count in shots for seed in seeds}
    return {
        name: Split(np.array(split.train, np.int64), np.array(split.val, np.int64) + len(train))
        for name, split in drawn.items()
    }


def _provenance(options: ImportOptions, logit_scale: float) -> Provenance:
    unknown: dict[str, Any] = {"weights_sha256": UNKNOWN, "precision": UNKNOWN, "classnames_form": UNKNOWN}
    versions = {name: version(name) for name in ("taskres-cache", "numpy")}
    return Provenance(
        options.name,
        options.backbone,
        options.pretrained,
        options.backbone,
        logit_scale=logit_scale,
        preprocess={},
        split=GIVEN_SPLIT,
        versions=versions,
        **unknown,
    )
