"""Archives and shards made of small images, by the programs that users make them with."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from tests.conftest import save_image


def class_folders(folder: Path, count: int = 8, classes: Iterable[str] = ("cat", "dog")) -> Path:
    """Make class folders of images that all differ; return the folder."""
    for row, classname in enumerate(classes):
        for number in range(count):
            save_image(folder / classname / f"{number}.png", 100 * row + number)
    return folder


def contents_below(folder: Path) -> dict[str, bytes]:
    """Return path -> bytes of every file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def tar_of(archive: Path, contents: Mapping[str, bytes], mode: str = "w", **options: int) -> Path:
    """Write a tar archive; the suffix of `mode` compresses it."""
    with tarfile.open(archive, mode, **options) as tar:  # type: ignore[call-overload]
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1_700_000_000
            tar.addfile(member, io.BytesIO(content))
    return archive


def zip_of(archive: Path, contents: Mapping[str, bytes]) -> Path:
    with ZipFile(archive, "w", ZIP_DEFLATED) as packed:
        for name, content in contents.items():
            packed.writestr(name, content)
    return archive
