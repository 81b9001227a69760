"""Arrow and Parquet files: columns, and single cells by row. The only module that knows pyarrow."""

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

from taskres_cache.errors import DatasetError
from taskres_cache.system.extras import require

PARQUET, ARROW = b"PAR1", b"ARROW1"
LARGEST_GROUP = 1 << 30  # bytes of a row group's images, which are in memory at once
DAMAGE = (OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError, NotImplementedError)  # pyarrow's too
ROWS_AT_ONCE = 4096  # of a column of vectors
GROUPS_KEPT = 2  # per process: threads may be on both sides of the border between two
Opened = TypeVar("Opened")


class TableFile(Protocol):
    """One file of a table."""

    path: Path
    rows: int

    def features(self) -> dict[str, dict[str, Any]]:
        """Return column -> what `datasets` records of it, or else its Arrow type as `{"_type": ...}`."""

    def values(self, column: str) -> list[Any]:
        """Return all cells of a column."""

    def cell(self, column: str, row: int) -> Any:
        """Return one cell."""

    def size(self, column: str, row: int) -> int:
        """Return the bytes of one image; 0 if that takes reading it."""


def open_table(path: Path) -> TableFile:
    """Open an Arrow or Parquet file.

    Raises
    ------
    DatasetError
        It is missing or damaged, or a row group is too large.
    MissingExtraError
        pyarrow is not installed.
    """
    require(f"reading {path}", "datasets", ("pyarrow",))
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
        return ParquetTable(path) if start.startswith(PARQUET) else ArrowTable(path, start == ARROW)
    except DAMAGE as error:
        raise _damaged(path, error) from error


class _PerProcess(Generic[Opened]):
    """Something that each process opens for itself, when it first needs it."""

    def __init__(self, opener: Callable[[Path], Opened], path: Path) -> None:
        self._opener, self._path = opener, path
        self._owner: int | None = None

    def get(self) -> Opened:
        """Return the opened object of this process."""
        if self._owner != os.getpid():
            self._opened = self._opener(self._path)
            self._owner = os.getpid()
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {"_opener": self._opener, "_path": self._path, "_owner": None}


class ArrowTable:
    """An Arrow file, memory-mapped: a cell is read without the others.

    Parameters
    ----------
    path : Path
        The file.
    seekable : bool
        Whether it has the file format; `datasets` writes the stream format.
    """

    def __init__(self, path: Path, seekable: bool) -> None:
        self.path = path
        self._table = _PerProcess(_mapped_file if seekable else _mapped_stream, path)
        self._table.get().validate(full=True)  # pyarrow trusts offsets: damaged ones would end the process
        self.rows = int(self._table.get().num_rows)

    def features(self) -> dict[str, dict[str, Any]]:
        """Return column -> what `datasets` records of it, or else its Arrow type."""
        return _features(self._table.get().schema)

    def values(self, column: str) -> list[Any]:
        """Return all cells of a column."""
        return _as_list(self._table.get().column(column), self.path)

    def cell(self, column: str, row: int) -> Any:
        """Return one cell."""
        return self._table.get().column(column)[row].as_py()

    def size(self, column: str, row: int) -> int:
        """Return the bytes of one image, from its position in the file."""
        cell = self._table.get().column(column)[row]
        image = cell["bytes"] if hasattr(cell, "keys") else cell
        return image.as_buffer().size if image.is_valid else 0


class ParquetTable:
    """A Parquet file: its row groups are read as a whole, and the last two are kept.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _PerProcess(_ParquetGroups, path)
        self.rows = int(self._file.get().file.metadata.num_rows)

    def features(self) -> dict[str, dict[str, Any]]:
        """Return column -> what `datasets` records of it, or else its Arrow type."""
        return _features(self._file.get().file.schema_arrow)

    def values(self, column: str) -> list[Any]:
        """Return all cells of a column."""
        try:
            found = self._file.get().file.read([column], use_threads=False).column(column)
        except DAMAGE as error:
            raise _damaged(self.path, error) from error
        return _as_list(found, self.path)

    def cell(self, column: str, row: int) -> Any:
        """Return one cell."""
        return self._file.get().cell(column, row)

    def size(self, column: str, row: int) -> int:
        """Return 0: the length of an image is not known before it is read."""
        return 0


class _ParquetGroups:
    """An open Parquet file and its last row groups."""

    def __init__(self, path: Path) -> None:
        from pyarrow.parquet import ParquetFile

        self.file = ParquetFile(path)
        groups = [self.file.metadata.row_group(number) for number in range(self.file.metadata.num_row_groups)]
        self._starts = list(accumulate((group.num_rows for group in groups), initial=0))
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > LARGEST_GROUP:
            raise DatasetError(
                f"{path} has a row group of {largest >> 20} MiB, expected at most {LARGEST_GROUP >> 20}; write it "
                "again with fewer rows per group"
            )
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = Lock()

    def cell(self, column: str, row: int) -> Any:
        """Return one cell, reading its row group unless it is one of the last two."""
        number = bisect_right(self._starts, row) - 1
        with self._lock:
            group = self._kept.pop((column, number), None)
            if group is None:
                group = self.file.read_row_group(number, [column], use_threads=False).column(column)
            self._kept[column, number] = group
            while len(self._kept) > GROUPS_KEPT:
                self._kept.popitem(last=False)
        return group[row - self._starts[number]].as_py()


def first_features(tables: Sequence[TableFile]) -> dict[str, dict[str, Any]]:
    """Return the features of the first file, after checking that all files have its columns."""
    first = tables[0].features()
    for table in tables[1:]:
        if missing := set(first) - set(table.features()):
            raise DatasetError(f"{table.path} has no column {min(missing)!r}, which {tables[0].path} has")
    return first


def _as_list(column: Any, path: Path) -> list[Any]:
    try:
        return list(column.to_pylist())
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DatasetError:
    reason = " ".join(str(error).split())[:200]
    return DatasetError(f"could not read the table {path} ({reason}); replace it with an intact copy")


def _mapped_stream(path: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()


def _mapped_file(path: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return column -> its feature from the metadata of `datasets`, or else its Arrow type."""
    recorded: Any = {}
    try:
        recorded = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        recorded = {}
    known = recorded if isinstance(recorded, dict) else {}
    return {
        field.name: known[field.name] if isinstance(known.get(field.name), dict) else {"_type": _type_of(field.type)}
        for field in schema
    }


def _type_of(kind: Any) -> str:
    """Return "Image" for bytes, or a struct that has them; else Arrow's name of the type."""
    import pyarrow

    is_bytes = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
    has_bytes = pyarrow.types.is_struct(kind) and any(field.name == "bytes" for field in kind)
    return "Image" if is_bytes or has_bytes else str(kind)


def column_values(path: Path, column: str) -> list[Any]:
    """Return all cells of a column of a Parquet or Arrow file as Python values.

    Raises
    ------
    DatasetError
        The file is damaged.
    MissingExtraError
        pyarrow is not installed.
    """
    return open_table(path).values(column)


def list_pieces(path: Path, column: str) -> Iterator[tuple[int, Any, list[int]]]:
    """Yield the vectors of a Parquet column, one batch of rows at a time.

    Yields
    ------
    rows : int
        Rows of the whole file.
    numbers : ndarray of shape (n * D,)
        The values of the batch, one vector after the other.
    lengths : list of int
        Length of each vector; -1 for a row without one.

    Raises
    ------
    DatasetError
        The file is damaged, or the column has no vectors of numbers.
    """
    require(f"reading {path}", "datasets", ("pyarrow",))
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column], use_threads=False):
            cells = batch.column(0)
            size = getattr(cells.type, "list_size", None)
            if not hasattr(cells, "flatten") or not hasattr(cells.type, "value_type"):
                raise DatasetError(f"{path}: column {column!r} has {cells.type}, expected a list of numbers per row")
            lengths = [size] * len(cells) if size is not None else cells.value_lengths().to_pylist()
            absent = cells.is_null().to_pylist()
            known = [-1 if gone or length is None else length for gone, length in zip(absent, lengths, strict=True)]
            numbers = cells.flatten().to_numpy(zero_copy_only=False)
            if numbers.dtype.kind not in "fiu":
                raise DatasetError(f"{path}: column {column!r} has {cells.type}, expected a list of numbers per row")
            yield int(file.metadata.num_rows), numbers, known
    except DAMAGE as error:
        raise _damaged(path, error) from error
