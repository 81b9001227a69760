"""The index of a zip or tar archive, made from its headers."""

import stat
import struct
from itertools import islice
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile, ZipInfo

from taskres_cache.datasets.packed.members import (
    DEFLATED,
    IN_TAR,
    SAMPLE,
    STORED,
    Members,
    Place,
    member_path,
    refuse_special,
    refuse_too_many,
    sampled_check,
)
from taskres_cache.datasets.packed.tar_headers import Header, tar_headers
from taskres_cache.datasets.packed.unpacking import StoredTar
from taskres_cache.errors import DatasetError
from taskres_cache.system.files import kind_of
from taskres_cache.system.names import shown

ENCRYPTED, UTF_8 = 0x1, 0x800  # flags of a zip member
UNIX = 3


def add_tar(members: Members, tar: StoredTar, prefix: str = "") -> None:
    """Add the files of a tar archive to an index.

    Parameters
    ----------
    members : Members
        The index.
    tar : StoredTar
        The archive.
    prefix : str
        Put before the paths, such as "shards-000.tar/".

    Raises
    ------
    DatasetError
        It is damaged, or a member is refused.
    """
    location, stored, _ = tar
    try:
        with stored.open("rb") as stream:
            for count, header in enumerate(tar_headers(stream, location), 1):
                refuse_too_many(count, location)
                path = member_path(header.name, location)
                if header.kind == "file" and path:
                    members.add(prefix + path, _place_in_tar(stream, header, stored))
                elif header.kind == "folder":
                    members.folders.update({prefix + path} if path else ())
                else:
                    refuse_special(header.kind, header.name, location)
    except OSError as error:
        raise DatasetError(f"could not read {location} ({error.strerror or error}); check its permissions") from error


def add_zip(members: Members, location: Path) -> None:
    """Add the files of a zip archive to an index.

    Raises
    ------
    DatasetError
        It is damaged, or a member is encrypted, a link, or refused for its name or size.
    """
    try:
        with ZipFile(location) as archive:
            listed = archive.infolist()
    except OSError as error:
        raise DatasetError(f"could not read {location} ({error.strerror or error}); check its permissions") from error
    except (BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise DatasetError(
            f"{location} is not an intact zip archive ({error}); replace it with an intact copy"
        ) from error
    refuse_too_many(len(listed), location)
    for info in listed:
        name = _zip_name(info)
        path = member_path(name, location)
        if info.create_system == UNIX:
            mode = info.external_attr >> 16
            refuse_special("" if stat.S_ISDIR(mode) or not stat.S_IFMT(mode) else kind_of(mode), name, location)
        if name.endswith("/"):
            members.folders.update({path} if path else ())
        elif path:
            members.add(path, _place_in_zip(info, path, location))


def first_names(tar: StoredTar, most: int = 1000) -> list[str]:
    """Return the names of the first members of a tar archive."""
    with tar.path.open("rb") as stream:
        return [header.name for header in islice(tar_headers(stream, tar.location), most)]


def _place_in_tar(stream: IO[bytes], header: Header, stored: Path) -> Place:
    stream.seek(header.offset)
    start = stream.read(min(header.size, SAMPLE))
    rest = min(header.size - len(start), SAMPLE)
    stream.seek(header.offset + header.size - rest)
    check = sampled_check(start, stream.read(rest))
    return Place(stored, header.offset, header.size, header.size, IN_TAR, check, header.mtime)


def _place_in_zip(info: ZipInfo, path: str, location: Path) -> Place:
    if info.flag_bits & ENCRYPTED:
        raise DatasetError(f"{location}: {shown(path)} is encrypted; pack the files again without a password")
    if info.compress_type not in (STORED, DEFLATED):
        raise DatasetError(
            f"{location}: {shown(path)} is compressed by method {info.compress_type}, expected 0 (stored) or 8 "
            "(deflated); pack the files again, for example with zip -r"
        )
    return Place(location, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)


def _zip_name(info: ZipInfo) -> str:
    """Return the name of a member: some programs write UTF-8 without saying so, and those of Windows backslashes."""
    name = info.filename
    if not info.flag_bits & UTF_8:
        try:
            name = name.encode("cp437").decode()
        except UnicodeError:
            name = info.filename
    return name.replace("\\", "/")
