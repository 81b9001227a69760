"""Arrays of one set of images, divided into train, val and test: as given per row, or drawn.

Axes: N images, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taskres_cache.caches.foreign.arrays import strings
from taskres_cache.datasets.dataset import GIVEN_SPLIT, PARTITIONS
from taskres_cache.datasets.folder import PARTITION_NAMES
from taskres_cache.datasets.splitting import split_class, split_rule
from taskres_cache.errors import ArraysError
from taskres_cache.system.names import shown

PER_IMAGE = ("features", "labels", "pre_projection", "paths")  # in any partition
OF_TRAIN = ("train_views", "train_views_pre_projection", "train_views_narrow", "train_views_narrow_pre_projection")
Arrays = Mapping[str, np.ndarray]
Rows = dict[str, np.ndarray]  # by partition


@dataclass(frozen=True)
class Divided:
    """Arrays by partition.

    Parameters
    ----------
    arrays : dict of str to ndarray
        With `train_features`, `test_features` and so on.
    split : str
        How the partitions were made, as a cache records it.
    notes : tuple of str
        What the user should know about it.
    """

    arrays: dict[str, np.ndarray]
    split: str = GIVEN_SPLIT
    notes: tuple[str, ...] = ()


def divided(arrays: Arrays, seed: int = 0) -> Divided:
    """Divide images into partitions if they are given as one set, or as train without test.

    A column `split` decides if it is there and names test rows. Else each class is drawn 60/20/20, or 80/20 if val is
    given. A row keeps its partition when rows are appended: it depends on the seed, the class, and the row's path, or
    its number within the class.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        With integer labels and class names.
    seed : int
        Seed of the draw.

    Raises
    ------
    ArraysError
        The same images are given twice, a row has an unknown part, or arrays differ in length.
    """
    one_set = [name for name in (*PER_IMAGE, "split") if name in arrays]
    if not one_set:
        return _without_test(arrays, "train", seed)
    if "features" not in arrays or "labels" not in arrays:
        missing = "features" if "features" not in arrays else "labels"
        raise ArraysError(f"{one_set[0]} is given but {missing} is missing; add it")
    twice = next((f"{part}_features" for part in PARTITIONS if f"{part}_features" in arrays), None)
    if twice is not None:
        raise ArraysError(f"features and {twice} are both given; pass all images as features, or each partition alone")
    if "split" in arrays:
        rows = _named_rows(strings("split", arrays["split"]), len(arrays["labels"]))
        return _without_test(_taken(arrays, "", rows), "train", seed)
    return _without_test(arrays, "", seed)


def _without_test(arrays: Arrays, source: str, seed: int) -> Divided:
    """Return arrays with test images, drawn from those of a partition if there are none."""
    prefix = f"{source}_" if source else ""
    features, labels = (f"{prefix}features", f"{prefix}labels")
    if any(f"test_{name}" in arrays for name in PER_IMAGE) or features not in arrays or labels not in arrays:
        return Divided(dict(arrays))
    paths = strings(f"{prefix}paths", arrays[f"{prefix}paths"]) if f"{prefix}paths" in arrays else None
    has_val = "val_features" in arrays
    rows, by = _drawn(arrays, labels, paths, has_val, seed)
    shares = "20 % of each class are test" if has_val else "20 % of each class are test and 20 % val"
    note = f"there are no test images: {shares}, drawn {by} with seed {seed}"
    rule = split_rule(seed) if paths else f"60/20/20 of each class by row, seed {seed}"
    return Divided(_taken(arrays, prefix, rows), rule.replace("60/20/20", "80/0/20") if has_val else rule, (note,))


def _drawn(arrays: Arrays, labels: str, paths: Sequence[str] | None, has_val: bool, seed: int) -> tuple[Rows, str]:
    """Return the rows of each partition, ascending, and what they were drawn by."""
    numbers = arrays[labels]
    classnames = arrays["classnames"].tolist() if "classnames" in arrays else []
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ArraysError(f"{labels} has shape {numbers.shape} and type {numbers.dtype}, expected integers or names")
    if paths is not None and len(paths) != len(numbers):
        raise ArraysError(f"{labels} has length {len(numbers)} and paths {len(paths)}; expected as many")
    parts: dict[str, list[int]] = {part: [] for part in PARTITIONS}
    for label in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == label).tolist()
        keys = {f"class/{paths[row] if paths else rank}": row for rank, row in enumerate(rows)}
        if len(keys) < len(rows):
            raise ArraysError("paths has a path twice within a class; give each image its own")
        name = str(classnames[label]) if 0 <= label < len(classnames) else str(label)
        split = split_class(tuple(keys), name, seed)
        for part in PARTITIONS:
            target = "train" if part == "val" and has_val else part
            parts[target] += [keys[key] for key in getattr(split, part)]
    return {part: np.array(sorted(rows), np.int64) for part, rows in parts.items() if rows}, (
        "by path" if paths else "by row"
    )


def _named_rows(split: Sequence[str], count: int) -> Rows:
    """Return the rows of each partition that a column names."""
    if len(split) != count:
        raise ArraysError(f"split has length {len(split)} and labels {count}; expected as many")
    parts: dict[str, list[int]] = {}
    for row, name in enumerate(split):
        part = PARTITION_NAMES.get(name.strip().casefold())
        if part is None:
            raise ArraysError(f"split: row {row} has {shown(name)}, expected train, val or test; fix the row")
        parts.setdefault(part, []).append(row)
    if "train" not in parts:
        raise ArraysError(f"split names {' and '.join(sorted(parts))} rows but no train row; add some")
    return {part: np.array(rows, np.int64) for part, rows in parts.items()}


def _taken(arrays: Arrays, prefix: str, rows: Rows) -> dict[str, np.ndarray]:
    """Return arrays with the rows of each partition taken from those of one, and the number of each row as its path."""
    count = len(arrays[f"{prefix}labels"])
    whole = {name: arrays[prefix + name] for name in PER_IMAGE if prefix + name in arrays}
    whole.setdefault("paths", np.array([f"{prefix[:-1] or 'row'}/{row}" for row in range(count)], dtype=str))
    wrong = next((name for name, array in whole.items() if array.ndim == 0 or len(array) != count), None)
    if wrong is not None:
        raise ArraysError(
            f"{prefix}{wrong} has shape {whole[wrong].shape}, expected {count} rows: one per label in {prefix}labels"
        )
    found = {name: array for name, array in arrays.items() if name.removeprefix(prefix) not in (*whole, "split")}
    for part, chosen in rows.items():
        found |= {f"{part}_{name}": array[chosen] for name, array in whole.items()}
    for name in OF_TRAIN:
        if name in arrays and arrays[name].ndim and len(arrays[name]) == count:
            found[name] = arrays[name][rows["train"]]
    return found
