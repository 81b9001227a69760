"""Images that are read out of archives, one by one."""

import struct
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image

from taskres_cache.datasets.images import ABSENT, ON_WHITE, Orientation, decode
from taskres_cache.datasets.packed.members import IN_TAR, STORED, Members, Place, sample, sampled_check
from taskres_cache.datasets.packed.unpacking import Unpacked

SEPARATOR = "::"  # between archives that are typed one by one, as WebDataset has it
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, and the lengths of name and extra field


@dataclass(frozen=True)
class PackedImages:
    """Images in archives. An archive is opened for each image, so processes and threads can share the source.

    Parameters
    ----------
    location : Path
        What the user typed: an archive, a pattern, or several separated by `::`.
    members : Members
        Where the files are.
    orientation : {"exif", "stored", "exif-on-white"}
        How pixels are read, see `decode`.
    unpacked : tuple of Unpacked
        Uncompressed copies that must exist as long as the source.
    """

    location: Path
    members: Members = field(repr=False, compare=False)
    orientation: Orientation = ON_WHITE
    unpacked: tuple[Unpacked, ...] = field(default=(), repr=False, compare=False)

    @property
    def reference(self) -> str:
        """The archives that the user typed, as absolute paths."""
        return SEPARATOR.join(str(Path(part).absolute()) for part in str(self.location).split(SEPARATOR))

    def stamp(self, path: str) -> str:
        """Return size, modification time and checksum of the file, as the index has them; ABSENT if it is missing.

        A zip has a checksum of the whole file. In a tar it is that of the first and last 4 KiB.
        """
        if path not in self.members.rows:
            return ABSENT
        place = self.members[path]
        time = f"{place.mtime:x}-" if place.method == IN_TAR else ""
        return f"{place.size}-{time}{place.check:08x}"

    def read(self, path: str) -> Image.Image:
        """Return the image, decoded and in RGB."""
        return decode(BytesIO(self.content(path)), self.orientation)

    def content(self, path: str) -> bytes:
        """Return the bytes of a file.

        Raises
        ------
        OSError
            The archive is missing or has changed since it was indexed, or the file in it is damaged.
        """
        place = self.members[path]
        with place.archive.open("rb") as stream:
            stream.seek(place.offset if place.method == IN_TAR else _content_in_zip(stream, place.offset))
            packed = stream.read(place.packed)
        content = _expanded(packed, place)
        found = sampled_check(*sample(content)) if place.method == IN_TAR else zlib.crc32(content)
        if len(packed) != place.packed or len(content) != place.size or found != place.check:
            raise OSError("damaged in the archive, or the archive has changed")
        return content


def _content_in_zip(stream: IO[bytes], offset: int) -> int:
    """Return the position of a member's content from its local header."""
    stream.seek(offset)
    header = stream.read(30)
    if len(header) < 30 or not header.startswith(b"PK\3\4"):
        raise OSError("damaged in the archive, or the archive has changed")
    _, name, extra = LOCAL_HEADER.unpack(header)
    return offset + len(header) + int(name) + int(extra)


def _expanded(packed: bytes, place: Place) -> bytes:
    """Return the content of a member, expanded to no more than one byte beyond the size that the archive claims."""
    if place.method in (IN_TAR, STORED):
        return packed
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, place.size + 1)
    except zlib.error as error:
        raise OSError(f"damaged in the archive ({error})") from error
