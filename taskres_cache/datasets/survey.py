"""Every file below a folder: the images, the folders, and how many other files there are, by kind.

Nothing is passed over without being counted, except what systems and this program put there themselves.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from taskres_cache.datasets.images import HEIC_SUFFIXES, ImageArchive, ImageSource, is_image_name
from taskres_cache.errors import DatasetError

SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"})
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
OWN_FOLDERS = {"cache": "*/*.h5", "runs": "*/*/*/shots_*"}  # name -> what this program puts there
MOST_KINDS = 6


@dataclass(frozen=True)
class Survey:
    """What is below a folder; paths are relative and have forward slashes.

    Parameters
    ----------
    images : tuple of str
        The image files, sorted.
    folders : tuple of str
        Every folder, sorted, with those that have no image.
    others : Counter of str
        Number of other files, by kind.
    """

    images: tuple[str, ...]
    folders: tuple[str, ...]
    others: Counter[str] = field(default_factory=Counter)


def survey_of(source: ImageSource) -> Survey:
    """Return what is below the location of a source.

    Raises
    ------
    DatasetError
        A folder could not be listed.
    """
    if isinstance(source, ImageArchive):
        return Survey(tuple(source.paths()), tuple(source.folders()))
    return _walk(source.location)


def survey_of_names(files: Iterable[str], folders: Iterable[str]) -> Survey:
    """Return what is in an archive, from the paths of its files and of the folders that it lists."""
    images: list[str] = []
    found: set[str] = set()
    others: Counter[str] = Counter()
    for path in files:
        *above, name = path.split("/")
        if any(map(is_system_name, above)):
            continue
        found.update("/".join(above[:depth]) for depth in range(1, len(above) + 1))
        if is_image_name(name):
            images.append(path)
        elif not is_system_name(name):
            others[kind_of_file(name)] += 1
    for folder in folders:
        parts = folder.split("/")
        if not any(map(is_system_name, parts)):
            found.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return Survey(tuple(sorted(images)), tuple(sorted(found)), others)


def is_system_name(name: str) -> bool:
    """Return True for a file or folder that belongs to a system, or is hidden."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS | SYSTEM_FILES


def unused_note(others: Counter[str]) -> tuple[str, ...]:
    """Return one line that counts the files that are not used, or nothing."""
    if not others:
        return ()
    counted = [f"{count} {kind}" for kind, count in others.most_common(MOST_KINDS)]
    rest = others.total() - sum(count for _, count in others.most_common(MOST_KINDS))
    counted += [f"{rest} of other kinds"] if rest else []
    files = "1 file" if others.total() == 1 else f"{others.total()} files"
    return (f"{files} not used: {', '.join(counted)}",)


def _walk(top: Path) -> Survey:
    images: list[str] = []
    folders: list[str] = []
    others: Counter[str] = Counter()
    above: dict[str, frozenset[tuple[int, int]]] = {}  # the folders on the way to a folder, so that link loops end
    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=_refuse):
        relative = Path(folder).relative_to(top)
        above[folder] = above.get(os.path.dirname(folder), frozenset()) | {_identity(folder)}
        subfolders[:] = [
            name
            for name in subfolders
            if not is_system_name(name) and _identity(os.path.join(folder, name)) not in above[folder]
        ]
        if not relative.parts:
            subfolders[:] = [name for name in subfolders if not _is_own(top, name)]
        folders += [(relative / name).as_posix() for name in subfolders]
        for name in names:
            if is_image_name(name):
                images.append((relative / name).as_posix())
            elif not is_system_name(name):
                others[kind_of_file(name)] += 1
    return Survey(tuple(sorted(images)), tuple(sorted(folders)), others)


def _refuse(error: OSError) -> None:
    raise DatasetError(
        f"could not read the folder {error.filename} ({error.strerror}); check its permissions, or pass another folder"
    ) from error


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_own(top: Path, name: str) -> bool:
    """Return True for the caches and runs of this program, which lie in the folder that it is started in."""
    return name in OWN_FOLDERS and next((top / name).glob(OWN_FOLDERS[name]), None) is not None


def kind_of_file(name: str) -> str:
    """Return the kind of a file that is not used, by its suffix, for messages."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in HEIC_SUFFIXES:
        return f"{suffix} (to read them: pip install 'taskres-cache[heic]')"
    return suffix if suffix.isascii() and suffix.isprintable() and 1 < len(suffix) <= 12 else "without a usual suffix"
