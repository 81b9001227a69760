"""Files of arrays of every form: `.npz`, `.npy`, `.safetensors`, Parquet tables, and lists of class names.

Nothing is ever unpickled. Axes: N images, C classes, D embedding.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from taskres_cache.caches.foreign.npz import read_arrays, refuse_unknown
from taskres_cache.caches.foreign.tables import ColumnNames, ParquetColumns, arrays_of_table
from taskres_cache.errors import ArraysError
from taskres_cache.system.names import shown

NUMPY_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip
TEXTS = (
    "classnames", "class_ids", "templates", "paths", "split", "labels", "train_labels", "val_labels", "test_labels",
)  # fmt: skip
FORMS = ".npz, .npy, .safetensors or .parquet"


def read_files(files: Sequence[str | Path], columns: ColumnNames | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of files together.

    Parameters
    ----------
    files : sequence of str or Path
        Each an `.npz`, `.safetensors` or `.parquet` file, or an `.npy` file whose name is that of its array, such as
        `train_features.npy`; `features=emb.npy` names the array of another.
    columns : ColumnNames, optional
        Columns of a Parquet file.

    Raises
    ------
    ArraysError
        A file does not exist, is damaged or of another form, has an unknown array, or one that another file has.
    MissingExtraError
        A Parquet file, and pyarrow is not installed.
    """
    arrays: dict[str, np.ndarray] = {}
    for given in files:
        name, path = _named(given)
        found = _read(path, name, columns)
        twice = next((one for one in found if one in arrays), None)
        if twice is not None:
            raise ArraysError(f"{path} has array {twice}, which another file has too; pass it once")
        arrays |= found
    refuse_unknown(arrays)
    return arrays


def read_classnames(file: Path) -> np.ndarray:
    """Return class names (C,) of a text file with one per line, or of a JSON list.

    Raises
    ------
    ArraysError
        The file could not be read, or holds something else.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        names = (
            json.loads(text) if file.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArraysError(f"could not read the class names in {file} ({reason}); pass a UTF-8 text file") from error
    return _text_array(f"{file}", names)


def _named(given: str | Path) -> tuple[str, Path]:
    """Return the name of the array in an `.npy` file, and the path, of `NAME=FILE` or `FILE`."""
    name, separator, path = str(given).partition("=")
    if separator and name.isidentifier() and not Path(str(given)).exists():
        return name, Path(path)
    return Path(given).stem, Path(given)


def _read(path: Path, name: str, columns: ColumnNames | None) -> dict[str, np.ndarray]:
    suffix = path.suffix.lower()
    if suffix in (".npy", ".safetensors", ".parquet") and not path.is_file():
        raise ArraysError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; pass {FORMS}")
    if suffix == ".npy":
        refuse_unknown([name])
        return {name: _read_npy(path)}
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix == ".parquet":
        return arrays_of_table(ParquetColumns(path), columns)
    return read_arrays(path)


def _read_npy(path: Path) -> np.ndarray:
    """Return the array of an `.npy` file, after checking that its header declares as many bytes as there are."""
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            left = path.stat().st_size - stream.tell()
            if dtype.hasobject:
                raise ArraysError(f"{path} holds pickled objects, which can run code; save np.array(..., dtype=str)")
            if math.prod(shape) * dtype.itemsize != left:
                raise ValueError(f"it declares {shape} of {dtype}, but has {left:,} bytes")
        array: np.ndarray = np.load(path, allow_pickle=False)
    except ArraysError:
        raise
    except Exception as error:  # numpy raises nearly any type of exception for a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArraysError(f"{path} is not a usable .npy file ({reason}); write it with numpy.save") from error
    return array


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file, and the lists of text in its metadata, such as `classnames`."""
    try:
        with safe_open(path, framework="np") as stored:  # checks header and sizes
            metadata, names = stored.metadata() or {}, list(stored.keys())
            types = {name: stored.get_slice(name).get_dtype() for name in names}
        refuse_unknown(types)
        texts = {name: _text_array(f"{path}: {name}", json.loads(metadata[name])) for name in TEXTS if name in metadata}
        return {**_tensors(path, types), **texts}
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArraysError(f"{path} is not a usable safetensors file ({reason}); write it again") from error


TEXTS = (
    "classnames",
    "class_ids",
    "templates",
    "paths",
    "split",
    "labels",
    "train_labels",
    "val_labels",
    "test_labels",
)


def _tensors(path: Path, types: dict[str, str]) -> dict[str, np.ndarray]:
    """Return all tensors, read from their places in the file; bfloat16, which NumPy does not have, as float32."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    found = {}
    for name, kind in types.items():
        entry, wide = header[name], kind == "BF16"
        if not wide and kind not in NUMPY_TYPES:
            raise ArraysError(f"{path}: {name} has type {kind}, expected one of {', '.join(NUMPY_TYPES)} or BF16")
        count = math.prod(entry["shape"])
        place = 8 + size + entry["data_offsets"][0]
        values = np.fromfile(path, "<u2" if wide else NUMPY_TYPES[kind], count, offset=place)
        values = (values.astype(np.uint32) << 16).view(np.float32) if wide else values
        found[name] = values.reshape(entry["shape"])
    return found


def _text_array(what: str, names: Any) -> np.ndarray:
    """Return a list of text as an array; raises ArraysError for anything else."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ArraysError(f"{what} holds {shown(type(names).__name__)}, expected a list of text")
    return np.array(names, dtype=object)


def joined(arrays: dict[str, np.ndarray], more: Iterable[tuple[str, np.ndarray | None]]) -> dict[str, np.ndarray]:
    """Return arrays with more of them; raises ArraysError for one that is given twice."""
    found = dict(arrays)
    for name, array in more:
        if array is not None and name in found:
            raise ArraysError(f"{name} is given twice, in the arrays and as an option; pass it once")
        found |= {} if array is None else {name: array}
    return found
