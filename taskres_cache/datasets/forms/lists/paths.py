"""Paths as a list writes them, made relative to one folder that none of them leaves."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from taskres_cache.system.names import shown

URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
DRIVE = re.compile(r"[a-z]:[\\/]", re.IGNORECASE)


@dataclass(frozen=True)
class ImageFolderOfList:
    """The folder of the images of a list.

    Parameters
    ----------
    folder : Path
        The folder below which all images are.
    start : Path
        Where paths start: this folder, or one below it.
    origin : Path
        Where paths that begin with `..` start; the folder of the list.
    """

    folder: Path
    start: Path
    origin: Path

    def relative(self, written: str) -> str:
        r"""Return a path below the folder, with forward slashes.

        The file `a\b.png` of a list from Windows is `a/b.png`, unless there is a file of the first name. Links below
        the folder are followed, as in class folders: a list cannot make one.

        Raises
        ------
        ValueError
            The path is empty, a URL, or leads out of the folder. The message says which, with the remedy.
        """
        path = self._as_meant(written)
        if not path:
            raise ValueError("no path, expected an image file; fill it in, or remove the row")
        if "\0" in path:
            raise ValueError(f"the path {shown(path)} has a NUL character; fix the row")
        if URL.match(path):
            raise ValueError(f"{shown(path)} is a URL, expected a file; download the images and list their files")
        normal = os.path.normpath(path).replace(os.sep, "/")
        if DRIVE.match(path) or normal == ".." or normal.startswith(("/", "../")):
            return self._below(os.path.join(os.path.abspath(self.origin), path), path)
        if self.start == self.folder:
            return normal
        return self._below(os.path.join(os.path.abspath(self.start), normal), path)

    def _as_meant(self, written: str) -> str:
        """Return a path without spaces around it and with forward slashes, unless a file has them in its name."""
        meant = written.strip().replace("\\", "/")
        if meant == written or "\0" in written:
            return meant
        return written if os.path.lexists(self.start / written) and not written.isspace() else meant

    def _below(self, file: str, path: str) -> str:
        """Return an absolute path relative to the folder; raises ValueError if it is elsewhere."""
        absolute = os.path.normpath(file)
        for folder in (os.path.abspath(self.folder), os.path.realpath(self.folder)):
            below = os.path.relpath(absolute, folder).replace(os.sep, "/") if _one_drive(absolute, folder) else ".."
            if not (DRIVE.match(path) and os.sep == "/") and below != ".." and not below.startswith("../"):
                return below
        raise ValueError(
            f"{shown(path)} is outside of {os.path.abspath(self.folder)}; pass the folder of all images with --root"
        )


def _one_drive(first: str, second: str) -> bool:
    return os.path.splitdrive(first)[0].casefold() == os.path.splitdrive(second)[0].casefold()
