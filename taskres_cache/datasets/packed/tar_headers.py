"""The headers of a tar archive, one after the other, without its contents.

Python's own reader takes a damaged header for the end of the archive, so members would be lost in silence, and it reads
extended headers of any size. This one refuses both.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from taskres_cache.errors import DatasetError

BLOCK = 512
LARGEST_EXTENSION = 1 << 20  # bytes of one long name or pax header
FILES = (b"0", b"\0", b"7")
FOLDERS = (b"5",)
EXTENSIONS = {b"L": "name", b"K": "link", b"x": "pax", b"X": "pax", b"g": "global"}
SPECIAL = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


class Header(NamedTuple):
    """One member of a tar archive.

    Parameters
    ----------
    name : str
        As it is stored.
    offset, size : int
        Position and length of its content, in bytes.
    mtime : int
        Modification time, in seconds.
    kind : {"file", "folder"} or str
        Anything else says what it is, such as "a symbolic link".
    """

    name: str
    offset: int
    size: int
    mtime: int
    kind: str


class TarDamage(Exception):
    """The bytes at a position are not what a tar archive has there."""


def tar_headers(stream: IO[bytes], location: Path) -> Iterator[Header]:
    """Yield the members of an uncompressed tar archive in order, read with few bytes around each header.

    Parameters
    ----------
    stream : binary stream
        The archive; it can be moved between two members.
    location : Path
        The archive, for messages.

    Raises
    ------
    DatasetError
        It is damaged or truncated.
    """
    end = stream.seek(0, 2)
    position, extensions, shared = 0, dict[str, bytes](), dict[str, bytes]()
    while position < end:
        try:
            stream.seek(position)
            block = stream.read(BLOCK)
            if not any(block):
                return
            kind, size = _checked(block), _number(block[124:136])
            after = position + BLOCK + -(-size // BLOCK) * BLOCK
            if kind in EXTENSIONS:
                _extend(EXTENSIONS[kind], _extension(stream, size), extensions, shared)
            else:
                records = shared | extensions
                header = _header(block, kind, position + BLOCK, records)
                if "size" in records and header.kind == "file":
                    after = position + BLOCK + -(-header.size // BLOCK) * BLOCK
                if header.kind == "file" and header.offset + header.size > end:
                    raise TarDamage(f"ends within {header.name!a}")
                yield header
                extensions = {}
        except TarDamage as damage:
            raise DatasetError(
                f"{location} is not an intact tar archive (byte {position}: {damage}); replace it with an intact copy"
            ) from None
        position = after
    if position > end and extensions:
        raise DatasetError(f"{location} is not an intact tar archive (it is truncated); replace it with an intact copy")


def starts_as_tar(block: bytes) -> bool:
    """Return True if the first 512 bytes of a file are a header, or the end mark of an archive without members."""
    try:
        return len(block) == BLOCK and (not any(block) or bool(_checked(block)))
    except TarDamage:
        return False


def _checked(block: bytes) -> bytes:
    """Return the type of a header after checking its checksum, which some programs computed with signed bytes."""
    if len(block) < BLOCK:
        raise TarDamage("it is truncated")
    rest = block[:148] + b" " * 8 + block[156:]
    stored, total = _number(block[148:156]), sum(rest)
    if stored != total and stored != total - 256 * sum(byte > 127 for byte in rest):
        raise TarDamage("wrong checksum")
    return block[156:157]


def _number(digits: bytes) -> int:
    """Return a number field: octal digits, or in base 256 after a byte of 0x80."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:])
    text = digits.partition(b"\0")[0].strip()
    if text.strip(b"01234567"):
        raise TarDamage(f"{digits!r} is no number")
    return int(text or b"0", 8)


def _extension(stream: IO[bytes], size: int) -> bytes:
    if size > LARGEST_EXTENSION:
        raise TarDamage(f"an extended header of {size} bytes")
    content = stream.read(size)
    if len(content) < size:
        raise TarDamage("it is truncated")
    return content


def _extend(kind: str, content: bytes, extensions: dict[str, bytes], shared: dict[str, bytes]) -> None:
    """Add what an extended header says to the records of the next member, or of all that follow."""
    if kind == "name":
        extensions["path"] = content.partition(b"\0")[0]
    elif kind != "link":
        (shared if kind == "global" else extensions).update(_pax_records(content))


def _pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield key and value of each record `<length> <key>=<value>` and a line break, the length in bytes of it all."""
    position = 0
    while position < len(content) and content[position]:
        space = content.find(b" ", position, position + 12)
        digits = content[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise TarDamage("a damaged extended header")
        record = content[space + 1 : position + int(digits)]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or position + int(digits) > len(content):
            raise TarDamage("a damaged extended header")
        yield key.decode(errors="replace"), value[:-1]
        position += int(digits)


def _header(block: bytes, kind: bytes, offset: int, records: dict[str, bytes]) -> Header:
    """Return a member from its header block and its extended records."""
    name, prefix = (block[start:end].partition(b"\0")[0] for start, end in ((0, 100), (345, 500)))
    if block[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    name = records.get("path", name)
    size = records["size"] if "size" in records else b"%d" % _number(block[124:136])
    if not size.isdigit() or len(size) > 18:
        raise TarDamage(f"a size of {size[:20]!r}")
    is_folder = kind in FOLDERS or (kind in FILES and name.endswith(b"/"))
    what = "folder" if is_folder else "file" if kind in FILES else SPECIAL.get(kind, "of an unknown kind")
    if any(key.startswith("GNU.sparse") for key in records):
        what = "a sparse file"
    text = name.decode("utf-8", "surrogateescape")
    return Header(text, offset, int(size), _seconds(block[136:148]), what)


def _seconds(digits: bytes) -> int:
    """Return the modification time; 0 if it is before 1970 or unreadable, which does not matter for a stamp."""
    try:
        return min(_number(digits), (1 << 62) - 1)
    except TarDamage:
        return 0
