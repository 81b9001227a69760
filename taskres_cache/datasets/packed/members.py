"""Where the files in archives are: an index of names and positions, about 250 bytes per file."""

import re
import zlib
from array import array
from pathlib import Path
from typing import NamedTuple

from taskres_cache.datasets.images import is_image_name
from taskres_cache.errors import DatasetError
from taskres_cache.system.names import shown

MOST_MEMBERS = 4_000_000  # per archive
LARGEST_IMAGE = 256 << 20  # bytes, expanded
DEEPEST, LONGEST_PATH = 32, 1024
SAMPLE = 4096  # bytes at the start and at the end of a member
DRIVE = re.compile(r"[A-Za-z]:")

IN_TAR, STORED, DEFLATED = -1, 0, 8  # how a member is packed; the last two are zip's own numbers


class Place(NamedTuple):
    """Where one file is.

    Parameters
    ----------
    archive : Path
        The archive.
    offset : int
        Of its content in a tar, of its local header in a zip.
    packed, size : int
        Bytes in the archive, and expanded.
    method : int
        IN_TAR, STORED or DEFLATED.
    check : int
        CRC-32: of the whole content in a zip, of `sample` in a tar.
    mtime : int
        Modification time that a tar records, in seconds; 0 in a zip, which has the checksum.
    """

    archive: Path
    offset: int
    packed: int
    size: int
    method: int
    check: int
    mtime: int = 0


class Members:
    """The files in one or more archives, in the order in which they are stored, and the folders that these list.

    `rows` maps the path of a file to its row. `folders` also has those without files.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.folders: set[str] = set()
        self._archives: list[Path] = []
        self._numbers = {name: array(kind) for name, kind in _COLUMNS.items()}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, path: str) -> Place:
        row = self.rows[path]
        archive, *numbers = (column[row] for column in self._numbers.values())
        return Place(self._archives[archive], *numbers)

    def add(self, path: str, place: Place) -> None:
        """Add a file; raises DatasetError if it is there twice, or is an image that is too large."""
        if path in self.rows:
            raise DatasetError(f"{place.archive} contains {shown(path)} twice, expected once; pack the files again")
        if place.size > LARGEST_IMAGE and is_image_name(path.rpartition("/")[2]):
            raise DatasetError(
                f"{place.archive}: {shown(path)} expands to {place.size >> 20} MiB, expected at most "
                f"{LARGEST_IMAGE >> 20}; pack the files again without it"
            )
        if not self._archives or self._archives[-1] != place.archive:
            self._archives.append(place.archive)
        self.rows[path] = len(self.rows)
        for column, number in zip(self._numbers.values(), (len(self._archives) - 1, *place[1:]), strict=True):
            column.append(number)


_COLUMNS = {"archive": "L", "offset": "Q", "packed": "Q", "size": "Q", "method": "b", "check": "L", "mtime": "q"}


def member_path(name: str, archive: Path) -> str:
    """Return the path of a member without empty and `.` parts.

    Raises
    ------
    DatasetError
        The name is absolute, has `..`, a drive or a NUL character, or is too long or too deep.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    fault = None
    if name.startswith("/") or DRIVE.match(name):
        fault = "is absolute"
    elif ".." in parts:
        fault = "leads out of its folder"
    elif "\0" in name:
        fault = "has a NUL character"
    elif len(name) > LONGEST_PATH or len(parts) > DEEPEST:
        fault = f"has more than {LONGEST_PATH} characters or {DEEPEST} folders"
    if fault is not None:
        raise DatasetError(f"{archive}: the name {shown(name)} {fault}; pack the files again with relative names")
    return "/".join(parts)


def refuse_too_many(count: int, archive: Path) -> None:
    """Raise DatasetError if an archive has more members than are read."""
    if count > MOST_MEMBERS:
        raise DatasetError(f"{archive} has more than {MOST_MEMBERS} members; split it into several archives")


def refuse_special(kind: str, name: str, archive: Path) -> None:
    """Raise DatasetError for a member that is neither a file nor a folder; nothing is done for an empty `kind`."""
    if kind:
        raise DatasetError(
            f"{archive}: {shown(name)} is {kind}, expected files and folders only; pack the files again without links"
        )


def sampled_check(start: bytes, end: bytes) -> int:
    """Return the CRC-32 of the first and last 4 KiB of a file, by which a change is noticed without reading it all."""
    return zlib.crc32(end, zlib.crc32(start))


def sample(content: bytes) -> tuple[bytes, bytes]:
    """Return the first and the last 4 KiB of a content, without overlap."""
    return content[:SAMPLE], content[max(SAMPLE, len(content) - SAMPLE) :]
