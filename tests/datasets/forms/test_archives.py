"""Zip and tar archives of class folders give the data set of the unpacked folder; hostile ones are refused."""

import errno
import os
import pickle
import stat
import struct
import tarfile
import tracemalloc
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskres_cache.datasets import load_dataset
from taskres_cache.datasets.images import ABSENT, PackedSource
from taskres_cache.datasets.packed import unpacking
from taskres_cache.errors import DatasetError, OptionError, TaskresError
from tests.datasets.forms.packing import class_folders, contents_below, tar_of, zip_of

MODES = {".tar": "w", ".tar.gz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz", ".tgz": "w:gz"}


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "pets")


def packed(folder: Path, suffix: str) -> Path:
    archive = folder.with_name(f"{folder.name}{suffix}")
    contents = contents_below(folder)
    return zip_of(archive, contents) if suffix == ".zip" else tar_of(archive, contents, MODES[suffix])


@pytest.mark.parametrize("suffix", [".zip", *MODES])
def test_an_archive_is_read_as_its_folder(pets: Path, suffix: str) -> None:
    (pets / "cat" / "readme.txt").write_text("x")
    (pets / "cat" / ".hidden.png").write_bytes(b"x")
    folder, archive = load_dataset(str(pets)), load_dataset(str(packed(pets, suffix)))
    assert archive.partitions == folder.partitions
    assert (archive.name, archive.classnames, archive.split) == ("pets", folder.classnames, folder.split)
    assert archive.notes == folder.notes == ("1 file not used: 1 .txt",)
    for item in (*folder.train, *folder.test):
        assert archive.source.read(item.path).tobytes() == folder.source.read(item.path).tobytes()
    assert isinstance(archive.source, PackedSource)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_a_source_works_in_other_processes(pets: Path, suffix: str) -> None:
    source = load_dataset(str(packed(pets, suffix))).source
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read("dog/3.png").tobytes() == source.read("dog/3.png").tobytes()
    assert copy.stamp("dog/3.png") == source.stamp("dog/3.png")
    del copy
    assert source.read("dog/4.png")  # a copy does not remove what was unpacked


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_stamps_follow_the_images_and_not_their_place(pets: Path, suffix: str) -> None:
    before = load_dataset(str(packed(pets, suffix))).source
    same = {item: before.stamp(f"dog/{item}.png") for item in range(8)}
    (pets / "cat" / "0.png").write_bytes((pets / "cat" / "0.png").read_bytes() + b"more")
    (pets / "cat" / "new.png").write_bytes(b"new")
    changed = bytearray((pets / "dog" / "1.png").read_bytes())
    changed[-20] ^= 1
    (pets / "dog" / "1.png").write_bytes(changed)
    old = before.stamp("cat/0.png")
    after = load_dataset(str(packed(pets, suffix))).source
    assert after.stamp("cat/0.png") != old
    assert {item for item in range(8) if after.stamp(f"dog/{item}.png") != same[item]} == {1}
    assert after.stamp("dog/99.png") == ABSENT


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_an_archive_that_changes_while_it_is_read_gives_no_wrong_image(pets: Path, suffix: str) -> None:
    archive = packed(pets, suffix)
    source = load_dataset(str(archive)).source
    content = archive.read_bytes()
    archive.write_bytes(content[:200] + bytes(len(content) - 200))
    with pytest.raises(OSError, match="damaged in the archive, or the archive has changed"):
        source.read("dog/3.png")
    archive.write_bytes(content[:200])
    with pytest.raises(OSError, match="damaged in the archive, or the archive has changed"):
        source.read("dog/3.png")


def test_the_copy_of_a_compressed_archive_goes_with_its_source(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("taskres_cache.datasets.packed.unpacking.gettempdir", lambda: str(place))
    abandoned = place / f".{unpacking.COPY_NAME}.{'0' * 16}.tmp"
    abandoned.write_bytes(b"of a killed process")
    dataset = load_dataset(str(packed(pets, ".tar.gz")))
    (copy,) = place.iterdir()
    assert copy != abandoned
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    child = os.fork()
    if child == 0:
        del dataset
        os._exit(0)
    os.waitpid(child, 0)
    assert list(place.iterdir()) == [copy]
    del dataset
    assert list(place.iterdir()) == []


def test_a_full_disk_while_unpacking_is_named(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(pets, ".tar.gz")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DatasetError, match=r"could not unpack .*pets.tar.gz into .* \(No space left .*set TMPDIR"):
        load_dataset(str(archive))


def test_names_of_windows_and_of_programs_that_hide_their_encoding(tmp_path: Path) -> None:
    contents = contents_below(class_folders(tmp_path / "pets"))
    archive = zip_of(tmp_path / "odd.zip", {name.replace("cat/", "12345|"): one for name, one in contents.items()})
    archive.write_bytes(archive.read_bytes().replace(b"12345|", "caf\u00e9\\".encode()))  # UTF-8 without its flag
    assert load_dataset(str(archive)).classnames == ("caf\u00e9", "dog")


def load_or_refuse(archive: Path, content: bytes) -> tuple[str, ...] | None:
    """Return the class names in an archive of these bytes, or None if it is refused in one line."""
    archive.write_bytes(content)
    try:
        return load_dataset(str(archive)).classnames
    except TaskresError as error:
        assert "\n" not in str(error)
        assert archive.name in str(error) or repr(archive.stem) in str(error)
        return None


HOSTILE = ["/etc/x.png", "../x.png", "cat/../../x.png", "C:/x.png", "a/" * 40 + "x.png", "n" * 2000 + ".png"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_names_that_lead_outside_are_refused(pets: Path, name: str, suffix: str) -> None:
    contents = {**contents_below(pets), name: b"x"}
    archive = pets.with_name(f"bad{suffix}")
    (zip_of if suffix == ".zip" else tar_of)(archive, contents)
    with pytest.raises(DatasetError, match=f"bad{suffix}: the name '.*pack the files again with relative names"):
        load_dataset(str(archive))


@pytest.mark.parametrize(
    ("kind", "said"),
    [(tarfile.SYMTYPE, "a symbolic link"), (tarfile.LNKTYPE, "a hard link"), (tarfile.CHRTYPE, "a device")],
)
def test_links_and_devices_in_a_tar_are_refused(pets: Path, kind: bytes, said: str) -> None:
    archive = packed(pets, ".tar")
    with tarfile.open(archive, "a") as tar:
        info = tarfile.TarInfo("cat/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DatasetError, match=f"pets.tar: 'cat/link.png' is {said}, expected files and folders only"):
        load_dataset(str(archive))


def test_links_and_encrypted_members_in_a_zip_are_refused(pets: Path) -> None:
    archive = packed(pets, ".zip")
    info = ZipInfo("cat/link.png")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with ZipFile(archive, "a") as opened:
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(DatasetError, match=r"pets.zip: 'cat/link.png' is a symbolic link"):
        load_dataset(str(archive))
    content = bytearray(packed(pets, ".zip").read_bytes())
    content[content.find(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match=r"pets.zip: 'cat/0.png' is encrypted; pack the files again without"):
        load_dataset(str(archive))


def test_an_image_that_expands_too_far_is_refused_by_its_header(pets: Path) -> None:
    content = bytearray(packed(pets, ".zip").read_bytes())
    at = content.find(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", 300 << 20)
    pets.with_suffix(".zip").write_bytes(content)
    with pytest.raises(DatasetError, match="'cat/0.png' expands to 300 MiB, expected at most 256"):
        load_dataset(str(pets.with_suffix(".zip")))


def test_a_member_never_expands_beyond_what_its_header_says(pets: Path) -> None:
    (pets / "cat" / "0.png").write_bytes(bytes(50 << 20))
    content = bytearray(packed(pets, ".zip").read_bytes())
    at = content.find(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", 1000)
    pets.with_suffix(".zip").write_bytes(content)
    source = load_dataset(str(pets.with_suffix(".zip"))).source
    tracemalloc.start()
    with pytest.raises(OSError, match="damaged in the archive"):
        source.read("cat/0.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_compressed_bomb_stops_at_its_limit(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "ALWAYS_ALLOWED", 1 << 20)
    (pets / "cat" / "zeros.bmp").write_bytes(bytes(20 << 20))
    with pytest.raises(DatasetError, match=r"pets.tar.gz expands to more than [123] MiB; if you trust it, uncompress"):
        load_dataset(str(packed(pets, ".tar.gz")))


@pytest.mark.parametrize("suffix", [".zip", *MODES])
@pytest.mark.parametrize("kept", [0, 10, 700, -100])
def test_a_damaged_archive_is_named_in_one_line(pets: Path, suffix: str, kept: int) -> None:
    archive = packed(pets, suffix)
    content = archive.read_bytes()
    assert load_or_refuse(archive, content[:kept]) is None or (suffix == ".tar" and kept == -100)


def test_the_same_path_twice_is_refused(pets: Path) -> None:
    archive = packed(pets, ".tar")
    with tarfile.open(archive, "a") as tar:
        tar.addfile(tarfile.TarInfo("./cat//0.png"))
    with pytest.raises(DatasetError, match=r"pets.tar contains 'cat/0.png' twice"):
        load_dataset(str(archive))


def test_what_is_no_archive_or_has_no_columns(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none.zip does not exist"):
        load_dataset(str(tmp_path / "none.zip"))
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(DatasetError, match=r"text.tar is not an intact zip or tar archive"):
        load_dataset(str(tmp_path / "text.tar"))
    with pytest.raises(OptionError, match="has no columns"):
        load_dataset(str(packed(pets, ".zip")), label_column="label")


def test_an_empty_class_folder_is_reported_as_in_a_folder(pets: Path) -> None:
    (pets / "empty").mkdir()
    with tarfile.open(pets.with_suffix(".tar"), "w") as tar:
        tar.add(pets, arcname="pets")
    with pytest.raises(DatasetError, match="has no image in 'pets/empty'"):
        load_dataset(str(pets.with_suffix(".tar")))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_change_of_an_archive_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed"
    if not folder.exists():
        class_folders(folder / "pets", 3)
    suffix = data.draw(st.sampled_from([".zip", ".tar", ".tar.gz"]))
    archive = folder / f"pets{suffix}"
    if not archive.exists():
        packed(folder / "pets", suffix)
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    changed = folder / f"changed{suffix}"
    if load_or_refuse(changed, bytes(content)) is not None:
        dataset = load_dataset(str(changed))
        for item in (*dataset.train, *dataset.val, *dataset.test):
            try:
                dataset.source.read(item.path)
            except Exception:  # noqa: BLE001  reported as unreadable
                continue


def test_stored_members_of_a_zip_are_read(pets: Path) -> None:
    with ZipFile(pets.with_suffix(".zip"), "w", ZIP_STORED) as archive:
        for name, content in contents_below(pets).items():
            archive.writestr(name, content)
    assert load_dataset(str(pets.with_suffix(".zip"))).source.read("cat/0.png").mode == "RGB"
