"""The cache file: HDF5 format `taskres-cache`, version 1, as described in `cache/README.md`. Knows no torch.

Axes: N images, M train images, V augmented views, C classes, T templates, D embedding, W width of the text tower.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from taskres_cache.caches.contents import CacheContents, Rows, Split, SplitName, TextBases, regular_base
from taskres_cache.caches.labelled import LabelledImages
from taskres_cache.caches.provenance import UNKNOWN, Provenance
from taskres_cache.errors import CacheDamagedError, CacheError, CacheMismatchError
from taskres_cache.system.files import PatientFile, replaced
from taskres_cache.system.version import __version__

FORMAT = "taskres-cache"
FORMAT_VERSION = 1
SLICE_BYTES = 1 << 20  # one chunk; a checksum covers a chunk, and a read brings in whole chunks


def write_cache(path: Path, contents: CacheContents) -> None:
    """Write a cache so that it appears whole or not at all; raises StorageError when it cannot be written.

    Features are taken a slice at a time, so that memory never holds all of them.
    """
    with replaced(path) as temporary, temporary.open("w+b") as stream:
        patient = PatientFile(stream)
        # From version 1.10 on HDF5's own metadata carries checksums, so that a flipped byte there is found too.
        with h5py.File(patient, "w", libver=("v110", "v110")) as file:
            _write_attributes(file, contents.provenance)
            file.create_group("splits")  # there even when no split is
            for name, array in _arrays(contents).items():
                _write_array(file, name, array)
                if patient.failure is not None:
                    break
        if patient.failure is not None:
            raise patient.failure


class FeatureCache(LabelledImages):
    """An open-and-shut view of a cache file: small arrays in memory, features read on demand.

    Parameters
    ----------
    path : the cache file.

    Raises
    ------
    CacheError : no such file, not a cache, a newer format, or an array that lacks or disagrees.
    CacheDamagedError : truncated, or a checksum does not match.
    """

    half = "all"  # of the classes, see `halves.CacheHalf`

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._reading() as file:
            self._check_format(file)
            self.provenance, self.created_at, self.created_by = _read_attributes(file)
            self.classnames = _read_strings(file["classnames"])
            self.class_ids = _read_strings(file["class_ids"]) if "class_ids" in file else None
            self.labels = file["images/label"][:]
            self.partitions = file["images/partition"][:]
            self.templates = _read_strings(file["text/templates"])
            self.splits = _read_splits(file["splits"])
            self.skipped = _read_skipped(file)
            has_views = "features/augmented_rows" in file
            self.augmented_rows: np.ndarray = file["features/augmented_rows"][:] if has_views else np.zeros(0, np.int64)
            self.shapes = {name: tuple(file[name].shape) for name in _array_names(file)}
        self._check_agreement()

    def __repr__(self) -> str:
        return f"FeatureCache({str(self.path)!r}: {len(self.labels)} images, {len(self.classnames)} classes)"

    @property
    def dim(self) -> int:
        """D, the width of the features."""
        return int(self.shapes["features/center"][1])

    @property
    def views(self) -> int:
        """V, the number of augmented views of each train image; 0 where there are none."""
        shape = self.shapes.get("features/augmented", ())
        return int(shape[1]) if len(shape) == 3 else 0

    def image_features(self, rows: np.ndarray) -> np.ndarray:
        """Return un-normalised image features (len(rows), D), float32, in the order of `rows`."""
        features = np.empty((len(rows), self.dim), dtype=np.float32)
        for positions, piece in self.pieces(rows):
            features[positions] = piece
        return features

    def pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions in `rows` and their un-normalised image features, float32, a chunk of the file at a time.

        Every chunk is read once, and memory never holds more than one.
        """
        yield from self._pieces("features/center", rows)

    def augmented_pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions in `rows` and the features of their augmented views (.., V, D), likewise.

        Raises
        ------
        CacheError : a row of which there are no views.
        """
        place_of = {row: place for place, row in enumerate(self.augmented_rows.tolist())}
        places = [place_of.get(row) for row in rows.tolist()]
        if None in places:
            row = int(rows[places.index(None)])
            raise CacheError(f"{self.path} has no augmented views of row {row}; add them with taskres extract --views")
        yield from self._pieces("features/augmented", np.array(places, np.int64))

    def stored(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return some rows of an array of the file, in their order and in the type that they are stored in."""
        with self._reading() as file:
            found = np.empty((len(rows), *file[name].shape[1:]), file[name].dtype)
            for positions, chunk in _read_chunks(file[name], rows):
                found[positions] = chunk
        return found

    def files(self) -> list[tuple[str, str]]:
        """Return path and stamp of each image, (N,); a cache by another program may have no stamps."""
        with self._reading() as file:
            paths = _read_strings(file["images/path"])
            stamps = _read_strings(file["images/stamp"]) if "images/stamp" in file else (UNKNOWN,) * len(paths)
        return list(zip(paths, stamps, strict=True))

    def _pieces(self, name: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with self._reading() as file:
            for positions, chunk in _read_chunks(file[name], rows):
                yield positions, chunk.astype(np.float32, copy=False)

    @property
    def text_features(self) -> np.ndarray:
        """The regular base (C, D): un-normalised, float32, the mean over templates."""
        return regular_base(self.text_bases().embeddings)

    def text_bases(self) -> TextBases:
        """Return the text tower's arrays."""
        with self._reading() as file:
            optional = {
                name: file[f"text/{name}"][:] for name in ("pre_projection", "projection") if f"text/{name}" in file
            }
            return TextBases(self.templates, file["text/embeddings"][:], **optional)

    def contents(self) -> CacheContents:
        """Return all of the file."""
        files = self.files()
        with self._reading() as file:
            features = file["features/center"][:]
            augmented = file["features/augmented"][:] if self.views else None
        return CacheContents(
            self.provenance, self.classnames, tuple(path for path, _ in files), tuple(stamp for _, stamp in files),
            self.labels, self.partitions, features, self.text_bases(), self.splits, self.skipped, self.class_ids,
            augmented, self.augmented_rows if self.views else None,
        )  # fmt: skip

    def expect(self, remedy: str, **expected: object) -> None:
        """Raise CacheMismatchError listing each field of the provenance, or `templates`, that is not as expected."""
        has = {**asdict(self.provenance), "templates": self.templates}
        differing = {name: (has[name], wish) for name, wish in expected.items() if has[name] != wish}
        if differing:
            raise CacheMismatchError(self.path, differing, remedy)

    def verify(self) -> dict[str, int]:
        """Re-read every byte against its checksum; return array name -> bytes read. Raises CacheDamagedError."""
        sizes = {}
        with self._reading() as file:
            for name in _array_names(file):
                stored = file[name]
                step = _rows_at_once(stored)
                sizes[name] = sum(stored[start : start + step].nbytes for start in range(0, len(stored), step))
        return sizes

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        """Open the file for reading; whatever HDF5 says of a damaged one becomes one clear line."""
        if not self.path.is_file():
            raise CacheError(f"cache {self.path} does not exist; make it with `taskres extract` or `taskres import`")
        try:
            self.path.open("rb").close()
        except OSError as error:
            raise CacheError(f"{self.path} cannot be read ({error.strerror}); mend its permissions") from error
        if not h5py.is_hdf5(self.path):
            raise CacheError(f"{self.path} is not a cache (no HDF5 file); expected a file that `taskres extract` wrote")
        try:
            # No lock: a cache is only ever replaced whole, and some network file systems cannot lock.
            with h5py.File(self.path, "r", locking=False) as file:
                yield file
        except (OSError, RuntimeError, KeyError, ValueError, UnicodeDecodeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise CacheDamagedError(
                f"{self.path} is truncated or damaged ({reason}); delete it and run the command that made it again"
            ) from error

    def _check_format(self, file: h5py.File) -> None:
        if _text(file.attrs.get("format", "")) != FORMAT:
            raise CacheError(
                f"{self.path} is an HDF5 file but not a {FORMAT} file; pass one that `taskres extract` wrote"
            )
        version = int(file.attrs.get("format_version", 0))
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{self.path} has format version {version}, expected {FORMAT_VERSION} (taskres-cache {__version__}); "
                f"{'upgrade taskres-cache' if version > FORMAT_VERSION else 'make the cache again'}"
            )

    def _check_agreement(self) -> None:
        """Raise CacheError when an array lacks, or two of them do not go together."""
        count, classes = len(self.labels), len(self.classnames)
        features = self.shapes.get("features/center", ())
        expected = {
            **({} if self.class_ids is None else {"class_ids": (classes,)}),
            "images/path": (count,),
            "images/partition": (count,),
            "features/center": (count, *features[1:2]),
            "text/embeddings": (classes, len(self.templates), *features[1:2]),
            **({"features/augmented": (len(self.augmented_rows), self.views, *features[1:2])} if self.views else {}),
        }
        for name, shape in expected.items():
            if name not in self.shapes:
                raise CacheError(f"{self.path} lacks {name}; make the cache again")
            if self.shapes[name] != shape:
                has = self.shapes[name]
                raise CacheError(f"{self.path}: {name} has shape {has}, expected {shape}; make the cache again")
        rows = np.concatenate(
            [np.zeros(0, np.int64), *(part for s in self.splits.values() for part in (s.train, s.val))]
        )
        row_numbers = (("splits", rows, count), ("features/augmented_rows", self.augmented_rows, count))
        for name, numbers, end in (("images/label", self.labels, classes), *row_numbers):
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < end:
                raise CacheError(f"{self.path}: {name} leave the range 0 to {end - 1}; make the cache again")


def _arrays(contents: CacheContents) -> dict[str, Any]:
    """Return every array of a cache by its path in the file."""
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
    """Write one array with a checksum; strings are fixed-length, since HDF5 checks no variable-length ones."""
    stored = _fixed_length(array) if isinstance(array, tuple) else array
    if 0 in stored.shape:  # nothing to protect, and a chunk cannot be empty
        file.create_dataset(name, shape=stored.shape, dtype=stored.dtype)
        return
    rows = _chunk_rows(stored)
    chunks = (rows, *stored.shape[1:])
    written = file.create_dataset(name, stored.shape, stored.dtype, chunks=chunks, fletcher32=True)
    for start in range(0, stored.shape[0], rows):
        written[start : start + rows] = stored[start : start + rows]


def _chunk_rows(array: Rows) -> int:
    """Return how many rows of an array make a chunk."""
    count, *others = array.shape
    return max(1, min(count, SLICE_BYTES // max(math.prod(others) * array.dtype.itemsize, 1)))


def _rows_at_once(stored: h5py.Dataset) -> int:
    """Return how many rows of an array are read at once: its chunk, also where another program wrote none."""
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
    """Return the provenance, when the cache was made, and by which version."""
    stored = {name: value for name, value in file.attrs.items() if np.ndim(value) == 0}
    plain = {name: _text(value) if isinstance(value, bytes | str) else float(value) for name, value in stored.items()}
    return Provenance.from_plain(plain), str(plain["created_at"]), str(plain["created_by"])


def _text(stored: Any) -> str:
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def _read_strings(stored: h5py.Dataset) -> tuple[str, ...]:
    return tuple(_text(string) for string in stored[:])


def _read_chunks(stored: h5py.Dataset, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions in `rows` and what the file has there, a chunk of it at a time, each read once."""
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
    return dict(zip(_read_strings(file["skipped/path"]), _read_strings(file["skipped/reason"]), strict=True))


def _array_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names
