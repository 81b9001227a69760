"""Finished blocks of stage one, in a folder next to the cache: a killed run loses at most the block it was encoding.

Axes: R rows of a block, D width of a row.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taskres_cache.errors import CacheDamagedError, StorageError
from taskres_cache.system.files import replaced


class Place(NamedTuple):
    """Where a row is stored: a block's file and the position in it."""

    file: Path
    position: int


class BlockFolder:
    """Rows under string keys, in small checksummed files that are written atomically (write, fsync, rename).

    Rows stay on disk until they are read, so that memory does not grow with their number.

    Parameters
    ----------
    folder : Path
        `<dataset>.h5.parts`; it need not exist.
    kind : str
        What the rows are. Blocks of another kind in the same folder are ignored.
    inputs : mapping of str to object
        Everything that affects the rows' values. Blocks made from other inputs are ignored.
    """

    def __init__(self, folder: Path, kind: str, inputs: Mapping[str, object]) -> None:
        self.folder = folder
        self._prefix = f"{kind}-{_digest(json.dumps(inputs, sort_keys=True))}"

    def prepare(self) -> None:
        """Create the folder, before hours of work depend on it; raises StorageError if that fails."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be created ({error.strerror or error}); choose another --cache-dir"
            ) from error

    def places(self) -> dict[str, Place]:
        """Return the place of every finished row by its key; damaged blocks are ignored.

        Every block is read completely, because its checksum covers all of it.
        """
        places: dict[str, Place] = {}
        for file in sorted(self.folder.glob(f"{self._prefix}-*.npz")):
            keys, _ = _read(file) or ([], None)
            places.update((key, Place(file, position)) for position, key in enumerate(keys))
        return places

    def write(self, keys: Sequence[str], values: np.ndarray) -> None:
        """Store a finished block: R keys and values (R, D)."""
        path = self.folder / f"{self._prefix}-{_digest(json.dumps(list(keys)))}.npz"
        with replaced(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, keys=np.array(list(keys)), values=values)

    def discard(self) -> None:
        """Remove these blocks, and the folder if it has no others."""
        for file in self.folder.glob(f"{self._prefix}-*.npz"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # missing, or not empty
            self.folder.rmdir()


def read_rows(places: Sequence[Place]) -> np.ndarray:
    """Return the rows at some places (len(places), D), with one block in memory at a time.

    Raises
    ------
    CacheDamagedError
        A block was removed or damaged after its rows were found.
    """
    by_file: dict[Path, list[int]] = {}
    for number, place in enumerate(places):
        by_file.setdefault(place.file, []).append(number)
    rows: np.ndarray | None = None
    for file, numbers in by_file.items():
        block = _read(file)
        if block is None:
            raise CacheDamagedError(f"{file} was damaged or removed by another program; run the same command again")
        values = block[1]
        rows = np.empty((len(places), *values.shape[1:]), values.dtype) if rows is None else rows
        rows[numbers] = values[[places[number].position for number in numbers]]
    return np.empty((0, 0), np.float32) if rows is None else rows


def discard_blocks(folder: Path) -> None:
    """Remove a folder with all its blocks; call this once the cache is written."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(file: Path) -> tuple[list[str], np.ndarray] | None:
    """Return a block's keys and values; None for a damaged file, which counts as missing.

    Each zip member has a CRC-32. A damaged header raises nearly anything, from zlib.error to NotImplementedError.
    """
    try:
        with np.load(file, allow_pickle=False) as block:
            keys, values = block["keys"], block["values"]
        whole = keys.ndim == 1 and keys.dtype.kind == "U" and values.ndim == 2 and values.dtype.kind == "f"
        return (keys.tolist(), values) if whole and len(keys) == len(values) else None
    except Exception:  # noqa: BLE001
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
