"""Read the arrays of an .npz file that somebody else wrote: only known ones, and never more than they declare.

Axes: N images of a partition, C classes, T templates, D embedding.
"""

import math
import re
import struct
from collections.abc import Iterable
from os import SEEK_END
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from taskres_cache.errors import ArraysError, near_matches
from taskres_cache.system.names import shown

REQUIRED = ("train_features", "train_labels")
OPTIONAL = (
    "val_features", "val_labels", "test_features", "test_labels", "classnames", "text_features",
    "templates", "class_ids", "logit_scale",
    "train_pre_projection", "val_pre_projection", "test_pre_projection", "image_projection", "image_projection_bias",
    "train_views", "train_views_pre_projection", "train_views_narrow", "train_views_narrow_pre_projection",
    "text_pre_projection", "text_projection", "train_paths", "val_paths", "test_paths",
    "features", "labels", "paths", "split", "pre_projection",  # of one set, to be divided
)  # fmt: skip
# The parts of a further set of prompts.
PROMPTS = re.compile(r"prompts_([A-Za-z0-9][A-Za-z0-9._-]{0,63}?)_(texts|labels|features|pre_projection)")
MOST_GROWTH = 10  # arrays may take this many times the file's size in memory, which compressed files need
END_BYTES = 22 + (1 << 16)  # of a zip archive: its end record and the longest comment
SLACK_BYTES = 1 << 24  # and this much more, for small files
CONVERT = "save its arrays with numpy.savez"
# First bytes of a file -> what it is, and how to get an .npz file or a cache from it.
OTHER_FILES = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "pass a cache to `taskres fit` directly; of another file, " + CONVERT),
    (b"\x93NUMPY", "a single array (.npy)", "put all arrays into one file with numpy.savez, or name it ARRAY.npy"),
    (b"\x80", "a pickle", "load it in Python if you trust its author, and " + CONVERT),
    (b"PAR1", "a Parquet file", "give it the suffix .parquet"),
    (b"MATLAB", "a MATLAB file", "load it with scipy.io.loadmat, and " + CONVERT),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
)
PYTORCH = ("a PyTorch file", "load it with torch.load(FILE, weights_only=True), and " + CONVERT)


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise ArraysError if there is an array whose name is not known, with the nearest known name."""
    unknown = next((name for name in names if name not in REQUIRED + OPTIONAL and not PROMPTS.fullmatch(name)), None)
    if unknown is not None:
        near = near_matches(unknown, REQUIRED + OPTIONAL)[:1]
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ArraysError(
            f"unknown array {shown(unknown)}; {hint}rename or remove it (required: {', '.join(REQUIRED)}; optional: "
            f"{', '.join(OPTIONAL)}, prompts_NAME_texts)"
        )


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file; nothing is ever unpickled.

    Raises
    ------
    ArraysError
        The file does not exist, is not an .npz file, has an array of an unknown name or of pickled objects, or declares
        much more than it contains.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ArraysError(f"{file} {what}; pass an .npz file written with numpy.savez")
    try:
        _refuse_other_files(file)
        with ZipFile(file) as archive:
            _refuse_lost_members(file, archive)
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            refuse_unknown(members)
            _refuse_growth(file, archive)
            return {name: _read_member(archive, member) for name, member in members.items()}
    except ArraysError:
        raise
    except Exception as error:  # zipfile and numpy raise nearly any type of exception for a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        objects = "bject array" in reason
        hint = "save strings as a string array, not as objects" if objects else "write it with numpy.savez"
        raise ArraysError(f"{file} is not a usable .npz file ({reason}); {hint}") from error


def _refuse_other_files(file: Path) -> None:
    """Raise ArraysError with what a file is, if it is of another known format."""
    with file.open("rb") as stream:
        start = stream.read(9)
    found = next(((what, remedy) for magic, what, remedy in OTHER_FILES if start.startswith(magic)), None)
    if found is None and start.startswith(b"PK"):
        with ZipFile(file) as archive:
            found = PYTORCH if any(name.endswith("data.pkl") for name in archive.namelist()) else None
    if found is not None and file.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        found = PYTORCH  # of before PyTorch 1.6
    if found is None and start[8:] == b"{":
        found = ("a safetensors file", "give it the suffix .safetensors")
    if found is not None:
        raise ArraysError(f"{file} is {found[0]}, not an .npz file; {found[1]}")


def _refuse_lost_members(file: Path, archive: ZipFile) -> None:
    """Raise ValueError if the archive's list has fewer members than its end says: zipfile stops at a damaged entry."""
    with file.open("rb") as stream:
        stream.seek(-min(file.stat().st_size, END_BYTES), SEEK_END)
        ending = stream.read()
    (count,) = struct.unpack_from("<H", ending, ending.rindex(b"PK\x05\x06") + 10)
    if count not in (len(archive.namelist()), 0xFFFF):  # the latter: counted elsewhere, in a large archive
        raise ValueError(f"its list has {len(archive.namelist())} of {count} arrays")
    if len(set(archive.namelist())) < len(archive.namelist()):
        raise ValueError("an array occurs twice")


def _refuse_growth(file: Path, archive: ZipFile) -> None:
    """Raise ArraysError if the arrays take much more memory than the file has bytes."""
    declared, size = sum(member.file_size for member in archive.infolist()), file.stat().st_size
    if declared > MOST_GROWTH * size + SLACK_BYTES:
        raise ArraysError(
            f"{file} declares {declared:,} bytes but has {size:,} bytes, expected at most {MOST_GROWTH} times as many; "
            "write it with numpy.savez"
        )


def _read_member(archive: ZipFile, member: str) -> np.ndarray:
    """Return one array, after checking that its header declares as many bytes as there are."""
    size = archive.getinfo(member).file_size
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize != size - stream.tell():
            raise ValueError(f"{member} declares {shape} of {dtype}, but has {size - stream.tell():,} bytes")
    with archive.open(member) as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return array
