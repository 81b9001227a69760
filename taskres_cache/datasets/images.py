"""Image sources: a folder on disk or a zip archive, with the same interface."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Protocol, runtime_checkable
from zipfile import BadZipFile, ZipFile
from zlib import crc32

from PIL import Image, ImageOps, UnidentifiedImageError

from taskres_cache.errors import DatasetError

READS_AVIF = find_spec("PIL.AvifImagePlugin") is not None  # Pillow 11.3 or newer
READS_HEIC = find_spec("pillow_heif") is not None  # the extra `heic`
HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
    | ({".avif"} if READS_AVIF else set())
    | (HEIC_SUFFIXES if READS_HEIC else set())
)
ABSENT = "absent"  # stamp of a missing file
# The only formats that are tried, whatever the suffix: Pillow also knows formats that run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(("AVIF",) if READS_AVIF else ()))
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
HIGHEST_16_BIT = 65535

LARGEST_BY_BITS = (255, 4095, HIGHEST_16_BIT)  # of 8, 12 and 16 bits, which scanners store in 16

# How pixels are read: "stored" as the field reads its data sets; "exif" upright by the EXIF orientation;
# "exif-on-white", for a user's pictures, upright, transparent parts white, and 12 bits in 16 scaled by 12.
Orientation = Literal["exif", "stored", "exif-on-white"]
ON_WHITE: Orientation = "exif-on-white"
TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


class ImageSource(Protocol):
    """Images, identified by relative paths with forward slashes."""

    @property
    def location(self) -> Path:
        """The folder or archive, for messages."""

    @property
    def orientation(self) -> Orientation:
        """Whether images are turned upright by their EXIF orientation, or pixels are used as they are stored."""

    def stamp(self, path: str) -> str:
        """Return text that changes when the image file changes, without reading the image; ABSENT if it is missing."""

    def read(self, path: str) -> Image.Image:
        """Return the image, decoded and in RGB."""


@runtime_checkable
class PackedSource(ImageSource, Protocol):
    """Images that are not files of their own: members of archives, rows of tables."""

    @property
    def reference(self) -> str:
        """Text with which the images are found again from any folder; a cache records it."""

    def content(self, path: str) -> bytes:
        """Return the bytes of an image file; raises OSError if they cannot be read."""


@dataclass(frozen=True)
class ImageFolder:
    """Images below a folder, at any depth.

    Parameters
    ----------
    location : Path
        The folder.
    orientation : {"exif", "stored", "exif-on-white"}
        How pixels are read, see `decode`. The field's own readers do not turn images upright, so the paper's data sets
        are read as "stored".
    """

    location: Path
    orientation: Orientation = "exif"

    def stamp(self, path: str) -> str:
        """Return size and modification time of the file; ABSENT if it is missing."""
        try:
            status = (self.location / path).stat()
        except OSError:
            return ABSENT
        return f"{status.st_size}-{status.st_mtime_ns}"

    def read(self, path: str) -> Image.Image:
        """Return the image, decoded and in RGB; upright if `orientation` is "exif"."""
        file = self.location / path
        if file.exists() and not file.is_file():
            raise OSError("not a file")  # opening a pipe would block
        with file.open("rb") as stream:
            return decode(stream, self.orientation)


@dataclass(frozen=True)
class ImageArchive:
    """Images in a small zip archive, read into memory; open it with `ImageArchive.at`.

    Parameters
    ----------
    location : Path
        The archive.
    files : mapping of str to bytes
        Contents of each image file, by path.
    orientation : {"exif", "stored", "exif-on-white"}
        How pixels are read, see `decode`.
    """

    location: Path
    files: Mapping[str, bytes] = field(repr=False)
    orientation: Orientation = "exif"

    @classmethod
    def at(cls, location: Path) -> "ImageArchive":
        """Open an archive.

        Raises
        ------
        DatasetError
            The file is not an intact zip archive.
        """
        try:
            with ZipFile(location) as archive:
                names = [name for name in archive.namelist() if is_image_name(PurePosixPath(name).name)]
                return cls(location, {name: archive.read(name) for name in sorted(names)})
        except (OSError, BadZipFile) as error:
            raise DatasetError(
                f"{location} is not a readable zip archive ({error}); replace it with an intact copy"
            ) from error

    def paths(self) -> list[str]:
        """Return the path of every image, sorted."""
        return list(self.files)

    def folders(self) -> list[str]:
        """Return the folders with images, sorted; an archive has no others."""
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
    """Return True if a file name has an image suffix and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def decode(stream: IO[bytes], orientation: Orientation) -> Image.Image:
    """Decode an image file to RGB; of an animation, the first frame.

    Parameters
    ----------
    stream : binary stream
        The file.
    orientation : {"exif", "stored", "exif-on-white"}
        "exif" turns the image upright by its EXIF orientation: cameras store sideways pixels and a tag, and an encoder
        sees only the pixels. Images without the tag, or with EXIF data that cannot be read, are unchanged.
        "exif-on-white" also makes transparent parts white, which are mostly stored as black, and scales 16-bit images
        by the bits that they use: 8, 12 or 16, the fewest that hold their largest value.

    Raises
    ------
    Exception
        The file is not an image, is truncated, or has more than 179 million pixels. Pillow's decoders raise nearly any
        type of exception.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about half that many pixels, or odd EXIF tags: these images are readable
        try:
            with Image.open(stream, formats=_formats_of(stream)) as image:
                return in_rgb(image, orientation)
        except UnidentifiedImageError as error:
            raise ValueError(f"not an image in one of the formats {', '.join(FORMATS)}") from error


def size_of(stream: IO[bytes]) -> tuple[int, int]:
    """Return width and height of an image file by its header, before any pixel is decoded; raises as `decode`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(stream, formats=_formats_of(stream)) as image:
                return image.size
        except UnidentifiedImageError as error:
            raise ValueError(f"not an image in one of the formats {', '.join(FORMATS)}") from error


def in_rgb(image: Image.Image, orientation: Orientation) -> Image.Image:
    """Return an open image in RGB, read as `decode` says."""
    if orientation == "stored":
        return _eight_bits(image, HIGHEST_16_BIT).convert("RGB")
    upright = _upright(image)
    if orientation == "exif":
        return _eight_bits(upright, HIGHEST_16_BIT).convert("RGB")
    return _on_white(_eight_bits(upright))


def has_transparency(path: Path) -> bool:
    """Return True if an image file has an alpha channel or a transparent colour, by its header; False if unreadable."""
    try:
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=_formats_of(stream)) as image:
                return image.mode in TRANSPARENT_MODES or "transparency" in image.info
    except Exception:  # noqa: BLE001  as in `decode`
        return False


def _formats_of(stream: IO[bytes]) -> tuple[str, ...]:
    """Return the formats to try; HEIC is registered when its first image comes, since few data sets have one."""
    start = stream.read(12)
    stream.seek(0)
    if not (READS_HEIC and start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS):
        return FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return (*FORMATS, "HEIF")


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned upright; unchanged if its EXIF data, which an image need not have, cannot be read."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  Pillow's readers of EXIF raise nearly any exception on broken data
        return image


def _on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB, with white behind transparent parts."""
    if image.mode not in TRANSPARENT_MODES and "transparency" not in image.info:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _eight_bits(image: Image.Image, white: int | None = None) -> Image.Image:
    """Convert 16 bits per pixel to 8 (Pillow's own conversion clips at 255); return other images unchanged.

    `white` is the largest value that a pixel can have; by default that of the fewest bits that hold all pixels.
    """
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    lowest, highest = image.getextrema()
    if image.mode == "F" or not 0 <= lowest <= highest <= HIGHEST_16_BIT:  # type: ignore[operator]
        raise ValueError(f"pixel values from {lowest} to {highest} have no defined white; save the image with 8 bits")
    largest = white or next(bits for bits in LARGEST_BY_BITS if highest <= bits)  # type: ignore[operator]
    step = (largest + 1) / 256
    return image.point(lambda sample: sample / step).convert("L")
