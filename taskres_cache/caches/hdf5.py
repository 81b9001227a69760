"""The cache file: HDF5 format `taskres-cache`, version 1, as described in `cache/README.md`; knows no torch.

Axes: N images, M train images, V augmented views, C classes, T templates, D embedding, W width of the text tower.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from taskres_cache.caches.contents import CacheContents, Rows, Split, SplitName
from taskres_cache.caches.header import Header, check_header
from taskres_cache.caches.provenance import UNKNOWN, Provenance
from taskres_cache.errors import CacheDamagedError, CacheError
from taskres_cache.system.files import replaced
from taskres_cache.system.version import __version__

FORMAT = "taskres-cache"
FORMAT_VERSION = 1
SLICE_BYTES = 1 << 20  # one chunk; a checksum covers a chunk, and a read brings in whole chunks


def write_cache(path: Path, contents: CacheContents) -> None:
    """Write a cache file; it appears complete or not at all.

    Features are written one chunk at a time, so memory never holds all of them.

    Parameters
    ----------
    path : Path
        File to write; an existing one is replaced.
    contents : CacheContents
        What to write.

    Raises
    ------
    StorageError
        The file could not be written.
    """
    with replaced(path) as temporary, temporary.open("w+b") as stream:
        patient = PatientFile(stream)
        # From version 1.10 on HDF5's own metadata carries checksums, so a flipped byte there is found too.
        with h5py.File(patient, "w", libver=("v110", "v110")) as file:
            _write_attributes(file, contents.provenance)
            file.create_group("splits")  # present even without a split
            for name, array in _arrays(contents).items():
                _write_array(file, name, array)
                if patient.failure is not None:
                    break
        if patient.failure is not None:
            raise patient.failure


def read_header(path: Path) -> Header:
    """Read the small arrays and attributes of a cache file and check that they agree.

    Raises
    ------
    CacheError
        The file does not exist, is not a cache or has another format version; an array is missing or has another shape
        than expected; a label or row number is out of range.
    CacheDamagedError
        The file is truncated or a checksum does not match.
    """
    with opened(path) as file:
        _check_format(path, file)
        provenance, created_at, created_by = _read_attributes(file)
        has_views = "features/augmented_rows" in file
        header = Header(
            provenance=provenance,
            created_at=created_at,
            created_by=created_by,
            classnames=_strings(file["classnames"]),
            class_ids=_strings(file["class_ids"]) if "class_ids" in file else None,
            labels=file["images/label"][:],
            partitions=file["images/partition"][:],
            templates=_strings(file["text/templates"]),
            splits=_read_splits(file["splits"]),
            skipped=_read_skipped(file),
            augmented_rows=file["features/augmented_rows"][:] if has_views else np.zeros(0, np.int64),
            shapes={name: tuple(file[name].shape) for name in _array_names(file)},
        )
    check_header(path, header)
    return header


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Return the named arrays by their names; those that the file does not have are left out."""
    with opened(path) as file:
        return {name: file[name][:] for name in names if name in file}


def read_files(path: Path) -> list[tuple[str, str]]:
    """Return path and stamp of each image (N,); stamps are UNKNOWN if the file has none."""
    with opened(path) as file:
        paths = _strings(file["images/path"])
        stamps = _strings(file["images/stamp"]) if "images/stamp" in file else (UNKNOWN,) * len(paths)
    return list(zip(paths, stamps, strict=True))


def read_rows(path: Path, name: str, rows: np.ndarray) -> np.ndarray:
    """Return some rows of an array, in the order of `rows` and in the type that the file has."""
    with opened(path) as file:
        found = np.empty((len(rows), *file[name].shape[1:]), file[name].dtype)
        for positions, chunk in _chunks(file[name], rows):
            found[positions] = chunk
    return found


def iterate_rows(path: Path, name: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield some rows of an array one chunk at a time: their positions in `rows`, and their values as float32."""
    with opened(path) as file:
        for positions, chunk in _chunks(file[name], rows):
            yield positions, chunk.astype(np.float32, copy=False)


def read_everything(path: Path) -> dict[str, int]:
    """Read every array, which checks its checksums; return the number of bytes by array name."""
    sizes = {}
    with opened(path) as file:
        for name in _array_names(file):
            stored = file[name]
            step = _rows_at_once(stored)
            sizes[name] = sum(stored[start : start + step].nbytes for start in range(0, len(stored), step))
    return sizes


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a cache file for reading; every error of HDF5 becomes a CacheDamagedError with a one-line message."""
    if not path.is_file():
        raise CacheError(f"cache {path} does not exist; make it with `taskres extract` or `taskres import`")
    try:
        path.open("rb").close()
    except OSError as error:
        raise CacheError(f"could not read {path} ({error.strerror}); check the file's permissions") from error
    if not h5py.is_hdf5(path):
        raise CacheError(f"{path} is not a cache (not an HDF5 file); pass a file written by `taskres extract`")
    try:
        # No lock: a cache is only ever replaced whole, and some network file systems cannot lock.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, UnicodeDecodeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CacheDamagedError(
            f"{path} is truncated or damaged ({reason}); delete it and run the command that made it again"
        ) from error


class PatientFile:
    """A file handle for HDF5 whose writes never fail; the first error is kept in `failure`.

    When a write to a full disk fails inside HDF5, HDF5 is left with a file that it can neither close nor forget.

    Parameters
    ----------
    stream : BinaryIO
        The open file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        self.read, self.readinto, self.seek, self.tell = stream.read, stream.readinto, stream.seek, stream.tell  # type: ignore[attr-defined]

    def write(self, content: bytes) -> int:
        """Write, or record the error."""
        return self._tried(lambda: self._stream.write(content), len(content))

    def truncate(self, size: int) -> int:
        """Set the file's size, or record the error."""
        return self._tried(lambda: self._stream.truncate(size), size)

    def flush(self) -> None:
        """Flush, or record the error."""
        self._tried(lambda: self._stream.flush() or 0, 0)

    def _tried(self, action: Callable[[], int], otherwise: int) -> int:
        if self.failure is None:
            try:
                return action()
            except OSError as error:
                self.failure = error
        return otherwise


def _check_format(path: Path, file: h5py.File) -> None:
    if _text(file.attrs.get("format", "")) != FORMAT:
        raise CacheError(f"{path} is an HDF5 file but not a {FORMAT} file; pass one written by `taskres extract`")
    version = int(file.attrs.get("format_version", 0))
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{path} has format version {version}, expected {FORMAT_VERSION} (taskres-cache {__version__}); "
            f"{'upgrade taskres-cache' if version > FORMAT_VERSION else 'make the cache again'}"
        )


def _arrays(contents: CacheContents) -> dict[str, Any]:
    """Return all arrays of a cache by their paths in the file."""
    text = contents.text
    arrays: dict[str, Any] = {
        "classnames": contents.classnames,
        "images/path": contents.paths,
        "images/stamp": contents.stamps,
        "images/label": contents.labels.astype(np.int32),
        "images/partition": contents.partitions.astype(np.uint8),
        "features/center": contents.image_features,
        "text/templates": text.templates,
        "text/embeddings": text.embeddings.astype(np.float32),
        "skipped/path": tuple(contents.skipped),
        "skipped/reason": tuple(contents.skipped.values()),
    }
    if contents.class_ids is not None:
        arrays["class_ids"] = contents.class_ids
    if contents.augmented is not None and contents.augmented_rows is not None:
        arrays["features/augmented"] = contents.augmented
        arrays["features/augmented_rows"] = contents.augmented_rows.astype(np.int64)
    if text.pre_projection is not None and text.projection is not None:
        arrays["text/pre_projection"] = text.pre_projection.astype(np.float32)
        arrays["text/projection"] = text.projection.astype(np.float32)
    for (shots, seed), split in contents.splits.items():
        arrays[f"splits/shots_{shots}/seed_{seed}/train"] = split.train.astype(np.int64)
        arrays[f"splits/shots_{shots}/seed_{seed}/val"] = split.val.astype(np.int64)
    return arrays


def _write_array(file: h5py.File, name: str, array: Any) -> None:
    """Write one array with a checksum; strings have fixed length, since HDF5 does not check variable-length ones."""
    stored = _fixed_length(array) if isinstance(array, tuple) else array
    if 0 in stored.shape:  # nothing to check, and a chunk cannot be empty
        file.create_dataset(name, shape=stored.shape, dtype=stored.dtype)
        return
    rows = _chunk_rows(stored)
    chunks = (rows, *stored.shape[1:])
    written = file.create_dataset(name, stored.shape, stored.dtype, chunks=chunks, fletcher32=True)
    for start in range(0, stored.shape[0], rows):
        written[start : start + rows] = stored[start : start + rows]


def _chunk_rows(array: Rows) -> int:
    """Return the number of rows per chunk."""
    count, *others = array.shape
    return max(1, min(count, SLICE_BYTES // max(math.prod(others) * array.dtype.itemsize, 1)))


def _rows_at_once(stored: h5py.Dataset) -> int:
    """Return the number of rows to read at once: a chunk, or as much where another program wrote no chunks."""
    return int(stored.chunks[0]) if stored.chunks else _chunk_rows(stored)


def _fixed_length(strings: tuple[str, ...]) -> np.ndarray:
    encoded = [string.encode() for string in strings]
    length = max((len(string) for string in encoded), default=0) or 1
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


def _write_attributes(file: h5py.File, provenance: Provenance) -> None:
    made = {"created_at": datetime.now(UTC).isoformat(timespec="seconds"), "created_by": f"taskres-cache {__version__}"}
    file.attrs["format_version"] = FORMAT_VERSION
    for name, value in {"format": FORMAT, **made, **provenance.as_plain()}.items():
        file.attrs[name] = _fixed_length((value,))[0] if isinstance(value, str) else value


def _read_attributes(file: h5py.File) -> tuple[Provenance, str, str]:
    """Return provenance, creation time and the version that wrote the cache."""
    stored = {name: value for name, value in file.attrs.items() if np.ndim(value) == 0}
    plain = {name: _text(value) if isinstance(value, bytes | str) else float(value) for name, value in stored.items()}
    return Provenance.from_plain(plain), str(plain["created_at"]), str(plain["created_by"])


def _text(stored: Any) -> str:
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def _strings(stored: h5py.Dataset) -> tuple[str, ...]:
    return tuple(_text(string) for string in stored[:])


def _chunks(stored: h5py.Dataset, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions in `rows` and the values of these rows, one chunk at a time; each chunk is read once."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    step = _rows_at_once(stored)
    for start in range(0, len(stored), step):
        first, last = np.searchsorted(ascending, (start, start + step))
        if first < last:
            yield order[first:last], stored[start : start + step][ascending[first:last] - start]


def _read_splits(group: h5py.Group) -> dict[SplitName, Split]:
    names = [
        (int(shots.removeprefix("shots_")), int(seed.removeprefix("seed_"))) for shots in group for seed in group[shots]
    ]
    where = {(shots, seed): group[f"shots_{shots}/seed_{seed}"] for shots, seed in sorted(names)}
    return {name: Split(split["train"][:], split["val"][:]) for name, split in where.items()}


def _read_skipped(file: h5py.File) -> dict[str, str]:
    if "skipped" not in file:
        return {}
    return dict(zip(_strings(file["skipped/path"]), _strings(file["skipped/reason"]), strict=True))


def _array_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names
