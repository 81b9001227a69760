"""Headers of tar archives are those that Python's own reader finds; damage is refused, not taken for the end."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskres_cache.datasets.packed.tar_headers import starts_as_tar, tar_headers
from taskres_cache.errors import DatasetError

WHERE = Path("some.tar")
names = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/") and len(name.encode()) < 900
)
fast = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def packed(members: list[tuple[str, bytes]], form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_600_000_000
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def headers(content: bytes) -> list[tuple[str, int, int, int, str]]:
    return [tuple(header) for header in tar_headers(io.BytesIO(content), WHERE)]


@fast
@given(
    st.lists(st.tuples(names, st.binary(max_size=1200)), max_size=4),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_of_pythons_reader(members: list[tuple[str, bytes]], form: int) -> None:
    content = packed(members, form)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(info.name, info.offset_data, info.size, info.mtime) for info in tar]
    assert [found[:4] for found in headers(content)] == expected
    assert len(expected) == len(members)


@fast
@given(st.integers(0, 4 * 512 - 1), st.integers(1, 255))
def test_a_changed_header_byte_never_loses_a_member(position: int, change: int) -> None:
    content = bytearray(packed([("a.png", b"x" * 512), ("b.png", b"y" * 512)], tarfile.GNU_FORMAT))
    content[position] ^= change
    in_header = position % 1024 < 512
    try:
        found = headers(bytes(content))
    except DatasetError as error:
        assert in_header
        assert "\n" not in str(error)
    else:
        assert len(found) == 2
        assert not in_header or 148 <= position % 1024 < 156  # the checksum may be written in several ways


@fast
@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        headers(content)
    except DatasetError as error:
        assert "not an intact tar archive" in str(error)


@pytest.mark.parametrize("kept", [300, 512 + 100, 1024 + 100, 1024 + 512 + 5])
def test_a_truncated_archive_is_refused(kept: int) -> None:
    content = packed([("a.png", b"x" * 512), ("b.png", b"y" * 512)], tarfile.GNU_FORMAT)
    with pytest.raises(DatasetError, match="some.tar is not an intact tar archive"):
        headers(content[:kept])


def test_special_members_say_what_they_are() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("x")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    kinds = [found[4] for found in headers(stream.getvalue())]
    assert kinds == ["a symbolic link", "a hard link", "a device", "a FIFO", "folder"]


def test_a_huge_extended_header_is_refused_without_reading_it() -> None:
    content = bytearray(packed([("n" * 200, b"")], tarfile.GNU_FORMAT))
    content[124:136] = b"77777777777\0"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    with pytest.raises(DatasetError, match="an extended header of 8589934591 bytes"):
        headers(bytes(content))


def test_archives_of_old_programs_without_a_magic_word_are_read() -> None:
    content = bytearray(packed([("a.png", b"x")], tarfile.USTAR_FORMAT))
    content[257:512] = b"\0" * 255
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    assert starts_as_tar(bytes(content[:512]))
    assert not starts_as_tar(b"x" * 512)
    assert headers(bytes(content))[0][:3] == ("a.png", 512, 1)
