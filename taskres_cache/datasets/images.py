"""Where images come from: a folder on disk or a zip archive, both answering to the same questions."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Protocol
from zipfile import BadZipFile, ZipFile
from zlib import crc32

from PIL import Image, ImageOps, UnidentifiedImageError

from taskres_cache.errors import DatasetError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
ABSENT = "absent"  # the stamp of a file that is not there
# Whatever a file is called, these are tried on it and nothing else: Pillow also knows formats that run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
HIGHEST_16_BIT = 65535

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
        file = self.location / path
        if file.exists() and not file.is_file():
            raise OSError("not a file")  # opening a pipe would wait for ever
        with file.open("rb") as stream:
            return decode(stream, self.orientation)


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
        return decode(BytesIO(self.files[path]), self.orientation)


def is_image_name(name: str) -> bool:
    """Return whether a file name is that of an image that is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def decode(stream: IO[bytes], orientation: Orientation) -> Image.Image:
    """Return an image file decoded, in RGB, of an animation the first frame.

    Parameters
    ----------
    stream : of the file.
    orientation : "exif" turns the image as its EXIF note says. Cameras store sideways pixels and a note, an encoder
        sees only the pixels; images without the note are unchanged.

    Raises
    ------
    Exception : of nearly any kind, since Pillow's many decoders raise what they like: not an image, cut short, or with
        more than 179 million pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of half that many pixels, or odd notes: those can be read all the same
        try:
            with Image.open(stream, formats=FORMATS) as image:
                upright = ImageOps.exif_transpose(image) if orientation == "exif" else image
                return _eight_bits(upright).convert("RGB")
        except UnidentifiedImageError as error:
            raise ValueError(f"not an image in one of the formats {', '.join(FORMATS)}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits a pixel in 8 (Pillow's own conversion would cut off at 255), others as they are."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    lowest, highest = image.getextrema()
    if image.mode == "F" or not 0 <= lowest <= highest <= HIGHEST_16_BIT:  # type: ignore[operator]
        raise ValueError(f"samples from {lowest} to {highest}, of which nobody says what is white; save it with 8 bits")
    return image.point(lambda sample: sample / 256).convert("L")
