"""The image files that a cache was made from, if they are still there."""

from pathlib import Path

from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets import ENTRIES
from taskres_cache.datasets.forms.form import FormOptions
from taskres_cache.datasets.forms.opening import read_form
from taskres_cache.datasets.images import ImageFolder, ImageSource, Orientation, PackedSource
from taskres_cache.errors import TaskresError
from taskres_cache.runs.run import found_from


def find_images(provenance: Provenance, root: Path | None, cache: Path | None = None) -> ImageSource | None:
    """Return the images of a cache, or None if they are not found.

    Parameters
    ----------
    provenance : Provenance
        Of the cache; it records the folder of the images.
    root : Path or None
        Where the user says that the images are: their folder, or the folder above all known data sets.
    cache : Path, optional
        The cache; a relative folder is also looked for in the folders above it.
    """
    orientation: Orientation = "stored" if provenance.preprocess.get("orientation") == "stored" else "exif"
    typed = provenance.images_folder
    recorded = found_from(cache.parent, "", typed) if cache is not None and typed else Path(typed) if typed else None
    entry = ENTRIES.get(provenance.dataset)
    if entry is not None and not entry.missing(root or Path(".")):
        try:
            return entry.read(root or Path(".")).source
        except TaskresError:
            return None
    if root or recorded or typed:
        return _own_images(root or recorded or Path(typed), orientation)
    return None


def _own_images(folder: Path, orientation: Orientation) -> ImageSource | None:
    """Return the images of a user's folder, archive or table, or None if they are not there."""
    try:
        dataset = read_form(str(folder), FormOptions())
    except TaskresError:
        return None
    if dataset is not None and isinstance(dataset.source, PackedSource):
        return dataset.source
    return ImageFolder(folder, orientation) if folder.is_dir() else None
