"""The cache file: HDF5 format `taskres-cache`, versions 1 and 2, as described in `cache/README.md`; knows no torch.

Axes: N images, M train images, V augmented views, C classes, P prompts, D embedding.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from taskres_cache.caches.contents import DEFAULT_PROMPTS, CacheContents, Rows, Split, SplitName
from taskres_cache.caches.header import Header, check_header
from taskres_cache.caches.layout import arrays_by_path, format_version, split_array
from taskres_cache.caches.provenance import UNKNOWN, Provenance
from taskres_cache.caches.schema import (
    DEFAULT_SET,
    REMEDY,
    VIEW_FAMILIES,
    FoundArray,
    check_arrays,
    check_attributes,
    check_text,
    declared_bytes,
    group_names,
    is_of_version_2,
)
from taskres_cache.datasets.sampling import shots_of
from taskres_cache.errors import CacheDamagedError, CacheError
from taskres_cache.system.files import replaced
from taskres_cache.system.names import shown
from taskres_cache.system.patient_file import PatientFile
from taskres_cache.system.version import __version__

FORMAT = "taskres-cache"
VERSIONS = (1, 2)  # a cache without parts of version 2 is written as version 1, which earlier programs read
SLICE_BYTES = 1 << 20  # one chunk; a checksum covers a chunk, and a read brings in whole chunks
MOST_GROWTH = 10  # arrays may take this many times the file's size in memory, which compressed files need
SLACK_BYTES = 1 << 20  # and this much more, for small files
UNTRUSTED = "do not use this file unless you know where it comes from"
FEWEST_STRINGS = 8  # strings of variable length that are read at once
SPLIT_NAME = re.compile(r"splits/shots_(\d{1,9}|all)/seed_(-?\d{1,18})/(train|val)")


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
            _write_attributes(file, contents)
            file.create_group("splits")  # present even without a split
            for name, array in arrays_by_path(contents).items():
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
        The file does not exist, is not a cache or has another format version; an attribute or array is missing, has
        another type or shape than `schema` declares, or lies in another file; a label or row number is out of range.
    CacheDamagedError
        The file is truncated or a checksum does not match.
    """
    with opened(path) as file:
        version = _format_version(path, file)
        plain = _plain_attributes(file)
        check_attributes(path, plain)
        found = _found_arrays(path, file)
        if version == 1:  # names of version 2 have no meaning there
            found = {name: array for name, array in found.items() if not is_of_version_2(name)}
        check_text(path, version, found)
        check_arrays(path, found)
        has_views = "features/augmented_rows" in found
        families, prompts = group_names(found, "views"), group_names(found, "prompts")
        header = Header(
            provenance=Provenance.from_plain(plain),
            created_at=plain["created_at"],
            created_by=plain["created_by"],
            classnames=_strings(file["classnames"]),
            class_ids=_strings(file["class_ids"]) if "class_ids" in found else None,
            labels=_integers(file["images/label"]),
            partitions=_integers(file["images/partition"]),
            templates=_strings(file["text/templates"]) if "text/templates" in found else (),
            splits=_read_splits(path, file, found),
            skipped=_read_skipped(file),
            augmented_rows=_integers(file["features/augmented_rows"]) if has_views else np.zeros(0, np.int64),
            family_rows={name: _integers(file[f"views/{name}/rows"]) for name in families},
            family_settings=json.loads(plain.get(VIEW_FAMILIES, "{}")),
            prompt_labels={name: _integers(file[f"prompts/{name}/class"]) for name in prompts},
            shapes={name: array.shape for name, array in found.items()},
            shown_names=_strings(file["text/shown_names"]) if "text/shown_names" in found else None,
            default_prompts=plain.get(DEFAULT_SET, DEFAULT_PROMPTS) if version > 1 else DEFAULT_PROMPTS,
        )
    check_header(path, header)
    return replace(header, labels=header.labels.astype(np.int32), partitions=header.partitions.astype(np.uint8))


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Return the named arrays by their names; those that the file does not have are left out."""
    with opened(path) as file:
        return {name: file[name][:] for name in names if name in file}


def read_strings(path: Path, name: str) -> tuple[str, ...]:
    """Return an array of text."""
    with opened(path) as file:
        return _strings(file[name])


class StoredRows:
    """An array of a cache file that is read when it is sliced, for writing a cache from another.

    Parameters
    ----------
    path : Path
        The cache file.
    name : str
        The array.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        with opened(path) as file:
            self.shape: tuple[int, ...] = file[name].shape
            self.dtype: np.dtype = file[name].dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        with opened(self._path) as file:
            values: np.ndarray = file[self._name][rows]
        return values


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


def arrays_without_checksum(path: Path) -> tuple[str, ...]:
    """Return the names of the non-empty arrays whose bytes HDF5 cannot check."""
    with opened(path) as file:
        return tuple(name for name in _array_names(file) if file[name].size and not file[name].fletcher32)


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
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CacheDamagedError(
            f"{path} is truncated or damaged ({reason}); delete it and run the command that made it again"
        ) from error


def _format_version(path: Path, file: h5py.File) -> int:
    """Return the version of the format; raises CacheError for other files and unknown versions."""
    if _plain_attribute(file, "format") != FORMAT:
        raise CacheError(f"{path} is an HDF5 file but not a {FORMAT} file; pass one written by `taskres extract`")
    version = _plain_attribute(file, "format_version")
    if not isinstance(version, float) or not version.is_integer():
        found = shown(version) if isinstance(version, str) else repr(version)
        raise CacheError(f"{path}: attribute format_version is {found}, expected 1 or 2; {REMEDY}")
    if version not in VERSIONS:
        raise CacheError(
            f"{path} has format version {int(version)}, expected 1 or 2 (taskres-cache {__version__}); "
            f"{'upgrade taskres-cache' if version > VERSIONS[-1] else 'make the cache again'}"
        )
    return int(version)


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


def _write_attributes(file: h5py.File, contents: CacheContents) -> None:
    made = {"created_at": datetime.now(UTC).isoformat(timespec="seconds"), "created_by": f"taskres-cache {__version__}"}
    file.attrs["format_version"] = format_version(contents)
    settings = {name: family.settings for name, family in contents.families.items()}
    further = {VIEW_FAMILIES: json.dumps(settings)} if settings else {}
    further |= {} if contents.default_prompts == DEFAULT_PROMPTS else {DEFAULT_SET: contents.default_prompts}
    for name, value in {"format": FORMAT, **made, **contents.provenance.as_plain(), **further}.items():
        file.attrs[name] = _fixed_length((value,))[0] if isinstance(value, str) else value


def _plain_attributes(file: h5py.File) -> dict[str, Any]:
    """Return the attributes of the format as text and numbers; the type where it is neither."""
    wanted = (*(known.name for known in fields(Provenance)), "created_at", "created_by", VIEW_FAMILIES, DEFAULT_SET)
    return {name: _plain_attribute(file, name) for name in wanted if name in file.attrs}


def _plain_attribute(file: h5py.File, name: str) -> Any:
    if name not in file.attrs:
        return None
    if file.attrs.get_id(name).shape != ():  # do not read what may be large
        return np.ndarray
    value = file.attrs[name]
    if isinstance(value, bytes | str):
        return _text(value)
    return float(value) if isinstance(value, np.integer | np.floating) else type(value)


def _found_arrays(path: Path, file: h5py.File) -> dict[str, FoundArray]:
    """Return type and shape of every array, without reading any.

    Raises
    ------
    CacheError
        An array is a link, lies in another file, or takes much more memory than the file has bytes: HDF5 reads other
        files of the user in their place, and allocates what a file declares before it looks for the values.
    """
    link = file.visititems_links(lambda name, link: None if isinstance(link, h5py.HardLink) else name)
    if link is not None:
        raise CacheError(f"{path}: {link} is a link to another place, expected the array itself; {UNTRUSTED}")
    arrays = {name: file[name] for name in _array_names(file)}
    outside = next((name for name, array in arrays.items() if array.external or array.is_virtual), None)
    if outside is not None:
        raise CacheError(f"{path}: the values of {outside} lie in another file, expected them in this one; {UNTRUSTED}")
    declared = sum(declared_bytes(array.shape or (), array.chunks, array.dtype.itemsize) for array in arrays.values())
    size = path.stat().st_size
    if declared > MOST_GROWTH * size + SLACK_BYTES:
        raise CacheError(
            f"{path} declares arrays of {declared:,} bytes but has {size:,} bytes, expected at most "
            f"{MOST_GROWTH} times as many; {UNTRUSTED}"
        )
    return {name: FoundArray(_kind(array.dtype), tuple(array.shape or ())) for name, array in arrays.items()}


def _kind(dtype: np.dtype) -> str:
    """Return the kind of an array's values as `schema` names it, or the type of other values."""
    if h5py.check_string_dtype(dtype) is not None:
        return "text"
    return {"i": "integers", "u": "integers", "f": "floats"}.get(dtype.kind, str(dtype))


def _text(stored: bytes | str) -> str:
    text = stored.decode() if isinstance(stored, bytes) else stored
    text.encode()  # h5py returns bytes that are not UTF-8 as surrogates, which cannot be printed
    return text


def _strings(stored: h5py.Dataset) -> tuple[str, ...]:
    """Return an array of text; a few values at a time if any number of them may point to the same bytes."""
    if h5py.check_string_dtype(stored.dtype).length is not None:
        return tuple(_text(string) for string in stored[:])
    size = stored.file.id.get_filesize()
    most, step, total = MOST_GROWTH * size + SLACK_BYTES, max(FEWEST_STRINGS, SLACK_BYTES // size), 0
    found: list[str] = []
    for start in range(0, len(stored), step):
        strings = stored[start : start + step]
        total += sum(map(len, strings))
        if total > most:
            raise ValueError(f"{stored.name} has more text than the file has bytes")
        found += map(_text, strings)
    return tuple(found)


def _integers(stored: h5py.Dataset) -> np.ndarray:
    """Return an array as int64; unsigned numbers beyond its range become negative, and so out of every range."""
    integers: np.ndarray = stored[:].astype(np.int64)
    return integers


def _chunks(stored: h5py.Dataset, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions in `rows` and the values of these rows, one chunk at a time; each chunk is read once."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    step = _rows_at_once(stored)
    for start in range(0, len(stored), step):
        first, last = np.searchsorted(ascending, (start, start + step))
        if first < last:
            yield order[first:last], stored[start : start + step][ascending[first:last] - start]


def _read_splits(path: Path, file: h5py.File, found: Mapping[str, FoundArray]) -> dict[SplitName, Split]:
    parts: dict[SplitName, dict[str, np.ndarray]] = {}
    for name in found:
        matched = SPLIT_NAME.fullmatch(name)
        if matched is None and name.startswith("splits/"):
            raise CacheError(f"{path}: unexpected array {name}, expected splits/shots_K/seed_S/train and val")
        if matched is not None:
            parts.setdefault((shots_of(matched[1]), int(matched[2])), {})[matched[3]] = _integers(file[name])
    for split_name, arrays in parts.items():
        if len(arrays) < 2:
            missing = "train" if "val" in arrays else "val"
            raise CacheError(f"{path} has no array {split_array(split_name, missing)}; {REMEDY}")
    return {name: Split(parts[name]["train"], parts[name]["val"]) for name in sorted(parts)}


def _read_skipped(file: h5py.File) -> dict[str, str]:
    if "skipped" not in file:
        return {}
    return dict(zip(_strings(file["skipped/path"]), _strings(file["skipped/reason"]), strict=True))


def _array_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names
