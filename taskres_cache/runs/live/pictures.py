"""Pictures in any form that Python programs hold them in, as RGB images.

Axes: H height, W width.
"""

import os
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from taskres_cache.datasets.images import Orientation, decode, in_rgb
from taskres_cache.errors import OptionError, PictureError

Picture = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray | Any

FORMS = "a path, bytes, a binary file, a PIL image, or an array or tensor of shape (H, W, 3) and type uint8"
WEB = ("http://", "https://", "ftp://", "data:")


def pictures_in(given: Picture | Iterable[Picture]) -> tuple[list[Picture], bool]:
    """Return the pictures in what a caller gave, and whether it was a single one.

    An array or tensor of four axes is a batch.
    """
    if _is_single(given):
        return [given], True
    if not isinstance(given, Iterable):
        raise OptionError(f"got {type(given).__name__}, expected {FORMS}, or a list or iterator of these")
    return list(given), False


def name_of(picture: Picture, position: int) -> str:
    """Return the name of a picture in results: its path or file name, else its position."""
    name = picture if isinstance(picture, str | os.PathLike) else getattr(picture, "name", None)
    name = name or getattr(picture, "filename", None)
    return os.fspath(name) if isinstance(name, str | os.PathLike) and str(name) else f"picture {position}"


def opened(picture: Picture, orientation: Orientation) -> Image.Image:
    """Return a picture in RGB.

    Parameters
    ----------
    picture : path, bytes, binary file, PIL image, ndarray or Tensor
        An array has shape (H, W, 3), or (H, W) for grey, and type uint8.
    orientation : {"exif", "stored", "exif-on-white"}
        How pixels are read, see `datasets.images.decode`; of arrays, they are used as they are.

    Raises
    ------
    PictureError
        The picture could not be read.
    """
    try:
        if isinstance(picture, str | os.PathLike):
            return _of_path(os.fspath(picture), orientation)
        if isinstance(picture, bytes | bytearray | memoryview):
            return decode(BytesIO(picture), orientation)
        if isinstance(picture, Image.Image):
            return in_rgb(picture.copy(), orientation)  # reading its EXIF data would change the caller's image
        if hasattr(picture, "read"):
            return decode(BytesIO(picture.read()), orientation)
        return Image.fromarray(_pixels(picture))
    except PictureError:
        raise
    except OSError as error:
        raise PictureError(error.strerror or " ".join(str(error).split())) from error
    except Exception as error:  # Pillow's decoders raise nearly any exception on broken files
        raise PictureError(" ".join(str(error).split()) or type(error).__name__) from error


def _is_single(given: object) -> bool:
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(given, "read"):
        return True
    shape = getattr(given, "shape", None)
    return shape is not None and len(shape) < 4


def _of_path(path: str, orientation: Orientation) -> Image.Image:
    if path.startswith(WEB):
        raise PictureError("is a web address; download the picture and pass its path or bytes")
    file = Path(path)
    if file.exists() and not file.is_file():
        raise PictureError("not a file")  # opening a pipe would block
    with file.open("rb") as stream:
        return decode(stream, orientation)


def _pixels(array: Any) -> np.ndarray:
    """Return an array or tensor of pixels as (H, W, 3), uint8."""
    if hasattr(array, "detach"):  # a tensor, on any device
        array = array.detach().cpu().numpy()
    if not isinstance(array, np.ndarray):
        raise PictureError(f"got {type(array).__name__}, expected {FORMS}")
    shape: Sequence[int] = array.shape
    if array.dtype != np.uint8:
        raise PictureError(f"got an array of type {array.dtype}, expected uint8 from 0 to 255; scale and convert it")
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in shape:
        first = "; move the channels to the end" if len(shape) == 3 and shape[0] == 3 else ""
        raise PictureError(f"got an array of shape {tuple(shape)}, expected (H, W, 3){first}")
    return np.ascontiguousarray(array)
