"""Test images of a cache, read from their files, to compare an export with its run on."""

from pathlib import Path

import numpy as np
from PIL import Image

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import Provenance
from taskres_cache.errors import TaskresError
from taskres_cache.runs.image_files import find_images

MOST = 200


def stored_pictures(cache_file: Path, provenance: Provenance, most: int = MOST) -> list[Image.Image]:
    """Return up to `most` evenly spaced test images, upright and in RGB; without those that are missing or changed.

    Parameters
    ----------
    cache_file : Path
        The cache; without it, there are no images.
    provenance : Provenance
        Of the run, which records where the images were.
    most : int
        How many to read.
    """
    try:
        cache = FeatureCache(cache_file)
        source = find_images(provenance, None, cache_file)
        rows, files = cache.rows("test"), cache.files()
    except (TaskresError, OSError):
        return []
    if source is None:
        return []
    spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)] if len(rows) else rows
    pictures = []
    for path, stamp in (files[row] for row in spread.tolist()):
        try:
            if source.stamp(path) == stamp:
                pictures.append(source.read(path))
        except Exception:  # noqa: BLE001  Pillow's decoders raise nearly anything; the others are compared
            continue
    return pictures
