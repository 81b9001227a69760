"""Small pictures of a cache's images, as far as the images are still where they were and as they were."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets import ENTRIES
from taskres_cache.datasets.images import ImageFolder, ImageSource, Orientation
from taskres_cache.errors import TaskresError

SIDE = 192  # pixels, twice what the page shows
PIXELATED = 64  # an image smaller than this is shown by its pixels rather than blurred


@dataclass(frozen=True)
class Thumbnail:
    """An image in a data: address, and whether it is so small that its pixels are to be seen."""

    address: str
    pixelated: bool


def find_images(made_from: Provenance, root: Path | None) -> ImageSource | None:
    """Return where the images of a cache are now; None when they are nowhere to be found.

    Parameters
    ----------
    made_from : of the cache, which records the folder that it was made from.
    root : where a user says that they are: the folder itself, or the folder above all known data sets.
    """
    orientation: Orientation = "stored" if made_from.preprocess.get("orientation") == "stored" else "exif"
    recorded = Path(made_from.images_folder) if made_from.images_folder else None
    entry = ENTRIES.get(made_from.dataset)
    if entry is not None and not entry.missing(root or Path(".")):
        try:
            return entry.read(root or Path(".")).source
        except TaskresError:
            return None
    folder = root or recorded
    return ImageFolder(folder, orientation) if folder is not None and folder.is_dir() else None


def thumbnail(source: ImageSource, path: str, stamp: str) -> Thumbnail | None:
    """Return a small picture of an image; None where it is gone, cannot be read, or is no longer the one that was."""
    try:
        if source.stamp(path) != stamp:
            return None
        image = source.read(path)
    except Exception:  # noqa: BLE001  broken files make Pillow's many decoders raise nearly anything
        return None
    pixelated = max(image.size) < PIXELATED
    image.thumbnail((SIDE, SIDE))
    stream, kind = BytesIO(), "png" if pixelated else "jpeg"
    image.save(stream, format=kind, **({} if pixelated else {"quality": 82}))
    return Thumbnail(f"data:image/{kind};base64,{b64encode(stream.getvalue()).decode()}", pixelated)
