"""Uncompressed copies of compressed tar archives, in the folder for temporary files.

A compressed archive cannot be read from the middle. Images hardly compress, so the copy is about as large.
"""

import os
import zlib
from bz2 import BZ2File
from collections.abc import Callable
from contextlib import suppress
from gzip import GzipFile
from importlib import import_module
from lzma import LZMAError, LZMAFile
from pathlib import Path
from tempfile import gettempdir
from typing import IO, NamedTuple
from weakref import finalize

from taskres_cache.datasets.packed.tar_headers import BLOCK, starts_as_tar
from taskres_cache.errors import DatasetError
from taskres_cache.system.files import discard_leftovers, locked_temporary

CHUNK = 1 << 20
ALWAYS_ALLOWED, MOST_EXPANSION = 1 << 30, 50  # bytes; times the size of the archive
ZSTD = ("compression.zstd", "backports.zstd", "zstandard")  # the first is in Python since 3.14
COPY_NAME = "taskres-unpacked.tar"
Opener = Callable[[Path], IO[bytes] | GzipFile | BZ2File | LZMAFile]


class Unpacked:
    """An uncompressed copy of an archive; removed with this object, or by a later run if the process is killed.

    An unpickled or forked one in another process leaves the copy alone.

    Parameters
    ----------
    archive : Path
        A tar archive, compressed by gzip, bzip2, xz or zstandard.

    Raises
    ------
    DatasetError
        The archive is damaged, expands to more than 1 GiB and 50 times its size, or the copy cannot be written.
    """

    def __init__(self, archive: Path) -> None:
        copy = Path(gettempdir()) / COPY_NAME
        discard_leftovers(copy)
        try:
            self.path, descriptor = locked_temporary(copy, 0o600)
        except OSError as error:
            raise _unwritable(archive, error) from error
        finalize(self, _remove, self.path, descriptor, os.getpid())
        _unpack(archive, descriptor)


class StoredTar(NamedTuple):
    """A tar archive that can be read from the middle.

    Parameters
    ----------
    location : Path
        The archive, for messages.
    path : Path
        The file to read: the archive, or its uncompressed copy.
    copies : tuple of Unpacked
        The copy, if one had to be made.
    """

    location: Path
    path: Path
    copies: tuple[Unpacked, ...] = ()


def stored_tar(location: Path) -> StoredTar | None:
    """Return a tar archive, uncompressed if needed; None if the file is neither a tar archive nor compressed.

    Raises
    ------
    DatasetError
        It cannot be read or uncompressed.
    """
    try:
        if is_compressed(location):
            copy = Unpacked(location)
            return StoredTar(location, copy.path, (copy,))
        with location.open("rb") as stream:
            return StoredTar(location, location) if starts_as_tar(stream.read(BLOCK)) else None
    except OSError as error:
        raise DatasetError(f"could not read {location} ({error.strerror or error}); check its permissions") from error


def is_compressed(archive: Path) -> bool:
    """Return True if a file starts as one that gzip, bzip2, xz or zstandard wrote."""
    return _opener(archive) is not None


def _unpack(archive: Path, descriptor: int) -> None:
    """Write the uncompressed content of an archive to an open file."""
    opener, total = _opener(archive), 0
    assert opener is not None
    allowed = max(ALWAYS_ALLOWED, MOST_EXPANSION * archive.stat().st_size)
    try:
        with opener(archive) as stream:
            while chunk := stream.read(CHUNK):
                total += len(chunk)
                if total > allowed:
                    raise DatasetError(
                        f"{archive} expands to more than {allowed >> 20} MiB; if you trust it, uncompress it yourself "
                        "and pass the result"
                    )
                _write(descriptor, chunk, archive)
    except (EOFError, ValueError, OSError, zlib.error, LZMAError) as error:
        raise DatasetError(f"{archive} is damaged or truncated ({error}); replace it with an intact copy") from error


def _write(descriptor: int, chunk: bytes, archive: Path) -> None:
    remaining = memoryview(chunk)
    try:
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
    except OSError as error:
        raise _unwritable(archive, error) from error


def _unwritable(archive: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"could not unpack {archive} into {gettempdir()} ({error.strerror}); free space there, set TMPDIR to another "
        "folder, or uncompress the archive yourself"
    )


def _opener(archive: Path) -> Opener | None:
    """Return what opens a compressed file, by its first bytes; None if it is not compressed."""
    with archive.open("rb") as stream:
        start = stream.read(6)
    openers: dict[bytes, Opener] = {
        b"\x1f\x8b": GzipFile,
        b"BZh": BZ2File,
        b"\xfd7zXZ\0": LZMAFile,
        b"\x28\xb5\x2f\xfd": _open_zstd,
    }
    return next((opener for magic, opener in openers.items() if start.startswith(magic)), None)


def _open_zstd(archive: Path) -> IO[bytes]:
    for name in ZSTD:
        with suppress(ImportError):
            return import_module(name).open(archive, "rb")  # type: ignore[no-any-return]
    raise DatasetError(f"{archive}: reading zstandard needs Python 3.14, or: pip install zstandard")


def _remove(copy: Path, descriptor: int, owner: int) -> None:
    """Remove the copy, unless this is a forked process, which has the same object."""
    if os.getpid() == owner:
        os.close(descriptor)  # first, since Windows does not remove an open file
        with suppress(OSError):
            copy.unlink()
