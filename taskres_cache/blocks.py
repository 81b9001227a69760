"""Finished blocks of stage one, beside the cache in the making: a killed run loses at most the block it was in.

Axes: R rows of a block, D width of a row.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from taskres_cache.errors import StorageError
from taskres_cache.files import replaced


class BlockFolder:
    """Rows under string keys, in small files that appear whole (write, fsync, rename) and check themselves on reading.

    Parameters
    ----------
    folder : `<dataset>.h5.parts`, made when it is missing.
    kind : what the rows are; blocks of another kind in the same folder are left alone.
    made_from : everything that changes the rows' values; blocks made from anything else are left alone.

    Raises
    ------
    StorageError : the folder cannot be made.
    """

    def __init__(self, folder: Path, kind: str, made_from: Mapping[str, object]) -> None:
        self.folder = folder
        self._prefix = f"{kind}-{_digest(json.dumps(made_from, sort_keys=True))}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be made ({error.strerror or error}); choose another --cache-dir"
            ) from error

    def load(self) -> dict[str, np.ndarray]:
        """Return every finished row, (D,), by its key; a damaged block counts as not there."""
        rows: dict[str, np.ndarray] = {}
        for file in sorted(self.folder.glob(f"{self._prefix}-*.npz")):
            rows.update(_read(file))
        return rows

    def write(self, keys: Sequence[str], values: np.ndarray) -> None:
        """Keep a finished block: keys and values (R, D)."""
        path = self.folder / f"{self._prefix}-{_digest(json.dumps(list(keys)))}.npz"
        with replaced(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, keys=np.array(list(keys)), values=values)


def discard_blocks(folder: Path) -> None:
    """Remove a folder with all its blocks; to be called once the cache itself is in place."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(file: Path) -> dict[str, np.ndarray]:
    """Return a block's rows by key; none for a file that is damaged (a zip member carries a CRC-32)."""
    try:
        with np.load(file, allow_pickle=False) as block:
            return dict(zip(block["keys"].tolist(), block["values"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
