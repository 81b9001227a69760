"""Image files as a user names them: by path, by a folder above them, or in a list; knows no torch."""

import os
from codecs import BOM_UTF8
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO

from PIL import Image

from taskres_cache.datasets.images import IMAGE_SUFFIXES, ImageFolder, is_image_name
from taskres_cache.datasets.survey import is_system_name
from taskres_cache.errors import OptionError


@dataclass(frozen=True)
class FoundImages:
    """The image files that the user named.

    Parameters
    ----------
    paths : tuple of str
        Path of each file, once. Files that were named one by one may be missing or not images.
    folders : tuple of str
        The names that are folders.
    empty : tuple of str
        The folders without images.
    unreadable : dict of str to str
        Each folder that could not be listed, and why.
    """

    paths: tuple[str, ...]
    folders: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)


class NamedFiles(ImageFolder):
    """Images by their own paths; errors are the system's messages, without error number and file name."""

    def read(self, path: str) -> Image.Image:
        """Return the image, decoded and in RGB; upright if `orientation` is "exif"."""
        try:
            return super().read(path)
        except OSError as error:
            raise OSError(error.strerror or str(error)) from error


def find_images(names: Iterable[str]) -> FoundImages:
    """Find the image files that names refer to.

    Parameters
    ----------
    names : iterable of str
        Files with any suffix, or folders, which stand for all files with an image suffix at any depth. In folders,
        hidden files and folders are left out and links are followed; no folder is entered twice, so link loops end.

    Returns
    -------
    FoundImages
        Files in the order of the names; the files of a folder are sorted.

    Raises
    ------
    OptionError
        There is no file at all.
    """
    found: dict[str, None] = {}
    folders, empty, refused = [], [], dict[str, str]()
    for name in dict.fromkeys(names):
        if not os.path.isdir(name):
            found[name] = None
            continue
        below = _images_below(name, refused)
        folders.append(name)
        empty += [] if below else [name]
        found |= dict.fromkeys(below)
    if not found:
        raise OptionError(_nothing_found(empty, refused))
    return FoundImages(tuple(found), tuple(folders), tuple(empty), refused)


def listed_names(stream: IO[bytes]) -> list[str]:
    """Return the paths in a list, one per line; blank lines are skipped, and spaces belong to the path."""
    lines = (line.removeprefix(BOM_UTF8).removesuffix(b"\n").removesuffix(b"\r") for line in stream)
    return [os.fsdecode(line) for line in lines if line.strip()]


def _images_below(top: str, refused: dict[str, str]) -> list[str]:
    """Return the images below a folder, sorted; add folders that could not be listed to `refused`."""
    found, entered = [], set()

    def refuse(error: OSError) -> None:
        refused[str(error.filename)] = error.strerror or str(error)

    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        once = (status.st_dev, status.st_ino) not in entered
        entered.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if once and not is_system_name(name))
        found += [os.path.join(folder, name) for name in names if once and is_image_name(name)]
    return sorted(found)


def _nothing_found(empty: list[str], refused: dict[str, str]) -> str:
    suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
    where = f" found in {', '.join(empty)}" if empty else " given"
    why = "".join(f" ({folder}: {reason})" for folder, reason in refused.items())
    return f"nothing to predict: no image{where}{why}; pass image files, or folders with {suffixes} files"
