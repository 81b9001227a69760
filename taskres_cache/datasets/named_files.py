"""Image files as a person names them: by path, by a folder somewhere above them, in a list. Knows no torch."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO

from PIL import Image

from taskres_cache.datasets.images import IMAGE_SUFFIXES, ImageFolder, is_image_name
from taskres_cache.errors import OptionError


@dataclass(frozen=True)
class FoundImages:
    """The image files that some names stand for.

    Parameters
    ----------
    paths : of the files, each once; those named one by one may turn out not to be there, or no images.
    folders : those of the names that are folders.
    empty : those of the folders that hold no image.
    unreadable : folder that cannot be listed -> why.
    """

    paths: tuple[str, ...]
    folders: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)


class NamedFiles(ImageFolder):
    """Images by their own paths; what the system has against a file is told in its words, without its number."""

    def read(self, path: str) -> Image.Image:
        """Return the image, decoded, in RGB, and upright where the orientation is "exif"."""
        try:
            return super().read(path)
        except OSError as error:
            raise OSError(error.strerror or str(error)) from error


def find_images(names: Iterable[str]) -> FoundImages:
    """Return the files that names stand for, in the order of the names, and below a folder sorted.

    Parameters
    ----------
    names : files of any name; or folders, which stand for every image below them at any depth by its suffix. Below a
        folder, hidden files and folders are left out, and links are followed; no folder is entered twice, so that
        links which lead back up end.

    Raises
    ------
    OptionError : there is no file at all.
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
    """Return the paths in a list, one a line; blank lines are left out, and spaces around a path belong to it."""
    lines = (line.removesuffix(b"\n").removesuffix(b"\r") for line in stream)
    return [os.fsdecode(line) for line in lines if line.strip()]


def _images_below(top: str, refused: dict[str, str]) -> list[str]:
    """Return the images below a folder, sorted; folders that cannot be listed are added to `refused`."""
    found, entered = [], set()

    def refuse(error: OSError) -> None:
        refused[str(error.filename)] = error.strerror or str(error)

    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        once = (status.st_dev, status.st_ino) not in entered
        entered.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if once and not name.startswith("."))
        found += [os.path.join(folder, name) for name in names if once and is_image_name(name)]
    return sorted(found)


def _nothing_found(empty: list[str], refused: dict[str, str]) -> str:
    suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
    where = f" below {', '.join(empty)}" if empty else " was named"
    why = "".join(f" ({folder}: {reason})" for folder, reason in refused.items())
    return f"nothing to predict: no image{where}{why}; name image files, or folders with files in {suffixes}"
