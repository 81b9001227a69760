"""Thumbnails of a cache's images, for images that still exist and have not changed."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO

from taskres_cache.datasets.images import ImageSource

SIDE = 192  # pixels, twice the size on the page
PIXELATED = 64  # smaller images are enlarged without smoothing


@dataclass(frozen=True)
class Thumbnail:
    """An image as a data: address, and whether to enlarge it without smoothing."""

    address: str
    pixelated: bool


def thumbnail(source: ImageSource, path: str, stamp: str) -> Thumbnail | None:
    """Return the thumbnail of an image; None if it is missing, cannot be read or has changed."""
    try:
        if source.stamp(path) != stamp:
            return None
        image = source.read(path)
    except Exception:  # noqa: BLE001  Pillow's decoders raise nearly anything for a broken file
        return None
    pixelated = max(image.size) < PIXELATED
    image.thumbnail((SIDE, SIDE))
    stream, kind = BytesIO(), "png" if pixelated else "jpeg"
    image.save(stream, format=kind, **({} if pixelated else {"quality": 82}))
    return Thumbnail(f"data:image/{kind};base64,{b64encode(stream.getvalue()).decode()}", pixelated)
