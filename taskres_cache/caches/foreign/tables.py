"""A table with one row per image, as arrays: a DataFrame, a dictionary of columns, or a Parquet file.

Axes: N rows, D embedding.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from taskres_cache.datasets.packed.tables import column_values, list_pieces, open_table
from taskres_cache.errors import ArraysError, DatasetError, near_matches
from taskres_cache.system.names import shown

# Column names that are found without being asked for, in any case.
USUAL = {
    "features": ("features", "image_features", "embedding", "embeddings", "emb", "vector"),
    "labels": ("label", "labels", "class", "classname", "class_name", "target", "y"),
    "split": ("split", "part", "partition", "set", "subset"),
    "paths": ("path", "file", "filename", "file_name", "image"),
}
OPTIONAL = ("split", "paths")
NUMBERED = re.compile(r"(.*?)(\d{1,6})")


@dataclass(frozen=True)
class ColumnNames:
    """Columns of a table.

    Parameters
    ----------
    features, labels, split, paths : str, optional
        Their names; by default those of `USUAL` that the table has. `split` and `paths` may be absent, and features may
        be one column per dimension, such as `f0`, `f1`.
    """

    features: str | None = None
    labels: str | None = None
    split: str | None = None
    paths: str | None = None


class Columns(Protocol):
    """A table: the name of each column, and its values."""

    where: str
    names: list[str]

    def values(self, name: str) -> np.ndarray:
        """Return a column (N,), of numbers or objects."""

    def matrix(self, name: str) -> np.ndarray:
        """Return a column of vectors as (N, D)."""


class MemoryColumns:
    """A DataFrame or a dictionary of columns.

    Parameters
    ----------
    table : DataFrame or mapping of str to sequence
        The columns.
    """

    where = "the table"

    def __init__(self, table: Any) -> None:
        self._table = table
        self.names = [str(name) for name in (table.columns if hasattr(table, "columns") else table)]
        self._keys = dict(zip(self.names, table.columns if hasattr(table, "columns") else table, strict=True))

    def values(self, name: str) -> np.ndarray:
        """Return a column (N,)."""
        column = self._table[self._keys[name]]
        return column.to_numpy() if hasattr(column, "to_numpy") else np.asarray(column)

    def matrix(self, name: str) -> np.ndarray:
        """Return a column of vectors as (N, D)."""
        column = self._table[self._keys[name]]
        if isinstance(column, np.ndarray) and column.ndim == 2:
            return column
        return _stacked(self.where, name, column)


class ParquetColumns:
    """A Parquet file. Vectors are read one batch of rows at a time.

    Parameters
    ----------
    file : Path
        The file.
    """

    def __init__(self, file: Path) -> None:
        self.where, self._file = str(file), file
        try:
            self.names = list(open_table(file).features())
        except DatasetError as error:
            raise ArraysError(str(error)) from error

    def values(self, name: str) -> np.ndarray:
        """Return a column (N,)."""
        return _as_array(column_values(self._file, name))

    def matrix(self, name: str) -> np.ndarray:
        """Return a column of vectors as (N, D); memory holds it once, and one batch."""
        found: np.ndarray | None = None
        row = 0
        for rows, numbers, listed in list_pieces(self._file, name):
            lengths = np.array(listed, np.int64)
            if found is None:
                dim = int(lengths[0]) if len(lengths) else 0
                kind = numbers.dtype if numbers.dtype.kind == "f" and numbers.dtype.itemsize < 8 else np.float32
                found = np.empty((rows, max(dim, 0)), kind if numbers.dtype.kind == "f" else numbers.dtype)
            _refuse_ragged(self.where, name, lengths, found.shape[1], row)
            with np.errstate(over="ignore"):
                found[row : row + len(lengths)] = numbers.reshape(len(lengths), -1)
            row += len(lengths)
        if found is None:
            raise ArraysError(f"{self.where}: column {shown(name)} is empty; add rows")
        return found


def arrays_of_table(columns: Columns, asked: ColumnNames | None = None) -> dict[str, np.ndarray]:
    """Return `features`, `labels` and, if they are there, `split` and `paths` of a table.

    Raises
    ------
    ArraysError
        A column is missing, occurs twice, has vectors of different lengths or other values than expected.
    MissingExtraError
        A Parquet file, and pyarrow is not installed.
    """
    names = asked or ColumnNames()
    try:
        twice = next((name for name in columns.names if columns.names.count(name) > 1), None)
        if twice is not None:
            raise ArraysError(f"{columns.where}: column {shown(twice)} occurs twice; rename or drop one")
        found = {what: _found(columns, what, getattr(names, what)) for what in USUAL}
        arrays = {what: _as_text(columns, name) for what, name in found.items() if name and what != "features"}
        return {"features": _features(columns, found), **arrays}
    except DatasetError as error:
        raise ArraysError(str(error)) from error


def _found(columns: Columns, what: str, asked: str | None) -> str | None:
    """Return the name of a column; None if it is not there and may be absent."""
    if asked:
        if asked not in columns.names:
            near = near_matches(asked, columns.names)[:1] or columns.names[:5]
            raise ArraysError(
                f"{columns.where} has no column {shown(asked)}; did you mean {', '.join(map(shown, near))}?"
            )
        return asked
    folded = {name.casefold(): name for name in reversed(columns.names)}
    known = next((folded[usual] for usual in USUAL[what] if usual in folded), None)
    if known is None and what == "labels":
        raise ArraysError(
            f"{columns.where} has no column of labels (looked for {', '.join(USUAL[what])}; it has "
            f"{', '.join(map(shown, columns.names[:8]))}); name it with --label-column"
        )
    return known


def _features(columns: Columns, found: Mapping[str, str | None]) -> np.ndarray:
    """Return the features (N, D) of one column of vectors, or of one column per dimension."""
    if found["features"] is not None:
        return columns.matrix(found["features"])
    others = {name for name in found.values() if name}
    numbered = _numbered([name for name in columns.names if name not in others], columns.where)
    vectors = [columns.values(name) for name in numbered]
    wrong = next((name for name, one in zip(numbered, vectors, strict=True) if one.dtype.kind not in "fiu"), None)
    if wrong is not None:
        raise ArraysError(f"{columns.where}: column {shown(wrong)} has values that are no numbers; fix or drop it")
    with np.errstate(over="ignore"):
        return np.stack([vector.astype(np.float32) for vector in vectors], axis=1)


def _numbered(names: Iterable[str], where: str) -> list[str]:
    """Return the columns with one prefix and consecutive numbers, in order: the longest such series."""
    series: dict[str, dict[int, str]] = {}
    for name in names:
        matched = NUMBERED.fullmatch(name)
        if matched is not None:
            series.setdefault(matched[1], {})[int(matched[2])] = name
    longest = max(series.values(), key=len, default={})
    if len(longest) < 2:
        raise ArraysError(
            f"{where} has no column of features (looked for {', '.join(USUAL['features'])}, or one per dimension such "
            "as f0, f1); name it with --features-column"
        )
    first, last = min(longest), max(longest)
    gap = next((number for number in range(first, last) if number not in longest), None)
    if gap is not None:
        raise ArraysError(
            f"{where}: there are columns {shown(longest[first])} to {shown(longest[last])}, but none for number {gap}; "
            "add it"
        )
    return [longest[number] for number in sorted(longest)]


def _as_text(columns: Columns, name: str) -> np.ndarray:
    """Return a column of labels, parts or paths; raises ArraysError with the first row that has no value."""
    values = columns.values(name)
    if values.dtype.kind == "O":
        missing = next((row for row, value in enumerate(values.tolist()) if value is None or value != value), None)
        if missing is not None:
            raise ArraysError(
                f"{columns.where}: column {shown(name)} has no value in row {missing}; fill it or drop it"
            )
    if values.dtype.kind == "f" and np.isnan(values).any():
        row = int(np.isnan(values).argmax())
        raise ArraysError(f"{columns.where}: column {shown(name)} has no value in row {row}; fill it or drop it")
    return values


def _as_array(values: list[Any]) -> np.ndarray:
    """Return values as an array of numbers if all are, else of objects."""
    if values and all(type(value) is int for value in values):
        return np.array(values, np.int64)
    if values and all(type(value) is float for value in values):
        return np.array(values, np.float64)
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _stacked(where: str, name: str, rows: Iterable[Any]) -> np.ndarray:
    """Return vectors as a matrix (N, D); raises ArraysError for the first row that differs."""
    vectors: list[np.ndarray] = []
    for row, value in enumerate(rows):
        try:
            vector = np.asarray(value, np.float32)
        except (ValueError, TypeError) as error:
            raise ArraysError(
                f"{where}: column {shown(name)}, row {row} is no vector of numbers; fix the row"
            ) from error
        if vector.ndim != 1 or (vectors and len(vector) != len(vectors[0])):
            expected = f"({len(vectors[0])},) as in row 0" if vectors else "(D,)"
            raise ArraysError(f"{where}: column {shown(name)}, row {row} has shape {vector.shape}, expected {expected}")
        vectors.append(vector)
    if not vectors:
        raise ArraysError(f"{where}: column {shown(name)} is empty; add rows")
    return np.stack(vectors)


def _refuse_ragged(where: str, name: str, lengths: np.ndarray, dim: int, first: int) -> None:
    """Raise ArraysError for the first vector (of rows from `first` on) that is missing or has another length."""
    wrong = lengths != dim
    if wrong.any() or dim <= 0:
        row = int(wrong.argmax())
        has = "no vector" if lengths[row] < 0 else f"{lengths[row]} values"
        raise ArraysError(
            f"{where}: column {shown(name)}, row {first + row} has {has}, expected {max(dim, 1)}; fix or drop the row"
        )
