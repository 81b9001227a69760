"""Import from Python: arrays, a DataFrame, or files, into a cache.

Axes: N images, C classes, T templates, D embedding.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from taskres_cache.caches.foreign.files import joined, read_files
from taskres_cache.caches.foreign.importing import Import, ImportOptions, import_contents
from taskres_cache.caches.foreign.npz import OPTIONAL, PROMPTS, REQUIRED
from taskres_cache.caches.foreign.tables import ColumnNames, MemoryColumns, arrays_of_table


def import_arrays(
    source: Any,
    name: str,
    *,
    classnames: Sequence[str] | None = None,
    text_features: Any = None,
    columns: ColumnNames | None = None,
    options: ImportOptions | None = None,
    cache_dir: str | Path = "cache",
) -> Import:
    """Make a cache from features that another program computed.

    Parameters
    ----------
    source : DataFrame, mapping, path, or sequence of paths
        A table with one row per image (columns such as `embedding`, `label`, `split`), a mapping of array names such as
        `train_features` to arrays, or files, see `read_files`.
    name : str
        Name of the data set.
    classnames : sequence of str, optional
        Class names (C,) in label order. Defaults to the sorted labels.
    text_features : array-like of shape (C, D) or (C, T, D), optional
        Text features in the order of `classnames`; without, methods that need none can be fitted.
    columns : ColumnNames, optional
        Columns of a table whose names are not usual.
    options : ImportOptions, optional
        Names of the model, few-shot splits and more; `name` replaces its name.
    cache_dir : str or Path, default "cache"
        Folder of all caches.

    Returns
    -------
    Import
        The cache file, its counts and notes.

    Raises
    ------
    ArraysError
        The arrays are inconsistent or have invalid values; an existing cache stays as it is.
    MissingExtraError
        A Parquet file, and pyarrow is not installed.
    CacheMismatchError
        An extracted cache already has this name.

    Examples
    --------
    >>> import numpy as np
    >>> from taskres_cache import import_arrays
    >>> rng = np.random.default_rng(0)
    >>> table = {"embedding": rng.normal(size=(60, 8)), "label": ["jay", "owl"] * 30}
    >>> done = import_arrays(table, "birds")
    >>> done.images, done.classes
    (60, 2)
    """
    names = None if classnames is None else np.array([str(one) for one in classnames], dtype=object)
    text = None if text_features is None else np.asarray(text_features)
    arrays = joined(_arrays_of(source, columns), (("classnames", names), ("text_features", text)))
    given = options or ImportOptions(name)
    return import_contents(arrays, ImportOptions(**{**vars(given), "name": name}), Path(cache_dir))


def _arrays_of(source: Any, columns: ColumnNames | None) -> dict[str, np.ndarray]:
    if isinstance(source, str | PathLike):
        return read_files([Path(source)], columns)
    if isinstance(source, Mapping) and not hasattr(source, "columns"):
        known = all(one in REQUIRED + OPTIONAL or PROMPTS.fullmatch(str(one)) for one in source)
        if known and columns is None:
            return {str(one): np.asarray(array) for one, array in source.items()}
        return arrays_of_table(MemoryColumns(source), columns)
    if hasattr(source, "columns"):
        return arrays_of_table(MemoryColumns(source), columns)
    return read_files([Path(file) for file in source], columns)
