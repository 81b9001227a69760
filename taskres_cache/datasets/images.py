"""Where images come from: a folder on disk or a zip archive, both answering to the same questions."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol
from zipfile import BadZipFile, ZipFile
from zlib import crc32

from PIL import Image, ImageOps

from taskres_cache.errors import DatasetError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
ABSENT = "absent"  # the stamp of a file that is not there

Orientation = Literal["exif", "stored"]


class ImageSource(Protocol):
    """A set of images that are known by relative paths with forward slashes."""

    @property
    def location(self) -> Path:
        """The folder or archive, for messages."""

    def paths(self) -> list[str]:
        """Return every image's path, sorted; files that are not images by their suffix are left out."""

    def folders(self) -> list[str]:
        """Return the folders that the images lie in, and those that could hold images but have none, sorted."""

    @property
    def orientation(self) -> Orientation:
        """Whether images are turned upright as their EXIF note says, or left as their pixels are stored."""

    def stamp(self, path: str) -> str:
        """Return what changes when the image's file changes, without reading the image; ABSENT when there is none."""

    def read(self, path: str) -> Image.Image:
        """Return the image, decoded and in RGB."""


@dataclass(frozen=True)
class ImageFolder:
    """Images below a folder, two or three levels deep (`class/file` or `partition/class/file`).

    Parameters
    ----------
    location : the folder.
    orientation : "exif" turns images upright; the field's own readers do not, so its data sets are read as "stored".
    """

    location: Path
    orientation: Orientation = "exif"

    def paths(self) -> list[str]:
        """Return every image's path, sorted, hidden files left out."""
        found = []
        for folder, subfolders, names in os.walk(self.location, followlinks=True):
            relative = Path(folder).relative_to(self.location)
            deepest = len(relative.parts) == 2  # where a link that leads back up must not be followed for ever
            subfolders[:] = [] if deepest else [name for name in subfolders if not name.startswith(".")]
            found += [(relative / name).as_posix() for name in names if is_image_name(name)]
        return sorted(found)

    def folders(self) -> list[str]:
        """Return every folder's path, sorted, hidden ones left out; shows the classes that have no image."""
        levels = [self.location.glob("*/"), self.location.glob("*/*/")]
        relative = [path.relative_to(self.location) for level in levels for path in level if path.is_dir()]
        return sorted(path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts))

    def stamp(self, path: str) -> str:
        """Return size and modification time of the file; ABSENT when there is none."""
        try:
            status = (self.location / path).stat()
        except OSError:
            return ABSENT
        return f"{status.st_size}-{status.st_mtime_ns}"

    def read(self, path: str) -> Image.Image:
        """Return the image, decoded, in RGB, and upright where the orientation is "exif"."""
        with Image.open(self.location / path) as image:
            return upright_rgb(image) if self.orientation == "exif" else image.convert("RGB")


@dataclass(frozen=True)
class ImageArchive:
    """Images in a small zip archive, laid out as in a folder and held in memory; open with `ImageArchive.at`."""

    location: Path
    files: Mapping[str, bytes] = field(repr=False)
    orientation: Orientation = "exif"

    @classmethod
    def at(cls, location: Path) -> "ImageArchive":
        """Return the archive's images; raises DatasetError for a file that is not an intact zip archive."""
        try:
            with ZipFile(location) as archive:
                names = [name for name in archive.namelist() if is_image_name(PurePosixPath(name).name)]
                return cls(location, {name: archive.read(name) for name in sorted(names)})
        except (OSError, BadZipFile) as error:
            raise DatasetError(
                f"{location} is not a readable zip archive ({error}); put an intact copy there"
            ) from error

    def paths(self) -> list[str]:
        """Return every image's path, sorted."""
        return list(self.files)

    def folders(self) -> list[str]:
        """Return the folders that hold images; an archive has no others."""
        parents = {parent for path in self.files for parent in PurePosixPath(path).parents if parent.parts}
        return sorted(parent.as_posix() for parent in parents)

    def stamp(self, path: str) -> str:
        """Return size and CRC-32 of the file."""
        content = self.files[path]
        return f"{len(content)}-{crc32(content):08x}"

    def read(self, path: str) -> Image.Image:
        """Return the image, decoded and in RGB."""
        with Image.open(BytesIO(self.files[path])) as image:
            return upright_rgb(image)


def is_image_name(name: str) -> bool:
    """Return whether a file name is that of an image that is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image decoded, turned as its EXIF orientation says, in RGB.

    Cameras store sideways pixels and a note; an encoder sees only the pixels. Images without the note are unchanged.
    """
    return ImageOps.exif_transpose(image).convert("RGB")
