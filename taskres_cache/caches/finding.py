"""Finding a cache by what a user calls it, and telling what one holds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskres_cache.caches.contents import listed_splits
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import PARTITIONS
from taskres_cache.errors import OptionError, UnknownNameError


def find_cache(file_or_name: str, cache_dir: Path, checkpoint: str | None = None) -> Path:
    """Return the cache that a file's path, a data set's name, or the folder that it was made of means.

    Parameters
    ----------
    file_or_name : what the user says.
    cache_dir : where caches live.
    checkpoint : `<backbone>-<pretrained>` whose cache is meant when there are several, and the first choice then.

    Raises
    ------
    UnknownNameError : neither a file nor the name of a cached data set.
    OptionError : the data set is cached for several checkpoints.
    """
    path = Path(file_or_name)
    if path.is_file() or path.suffix == ".h5":
        return path
    name = path.resolve().name if path.is_dir() else file_or_name
    cached = sorted(cache_dir.glob("*/*.h5"))
    found = [candidate for candidate in cached if candidate.stem == name]
    if not found:
        remedy = f"no such cache below {cache_dir}; make it with `taskres extract {file_or_name}` or pass --cache-dir"
        raise UnknownNameError("cache", file_or_name, {candidate.stem for candidate in cached}, remedy)
    preferred = [candidate for candidate in found if candidate.parent.name == checkpoint]
    if preferred:
        return preferred[0]
    if len(found) > 1:
        raise OptionError(
            f"{file_or_name!r} is cached for several checkpoints; pass one of {', '.join(map(str, found))}"
        )
    return found[0]


def describe_cache(cache: FeatureCache) -> dict[str, Any]:
    """Return what a cache was made from and holds, as plain values in the order in which a person asks."""
    counts = {partition: len(cache.rows(partition)) for partition in PARTITIONS}
    return {
        **asdict(cache.provenance),
        "created_at": cache.created_at,
        "created_by": cache.created_by,
        "classes": len(cache.classnames),
        "templates": list(cache.templates),
        "images": counts,
        "augmented_views": cache.views,
        "skipped_images": len(cache.skipped),
        "splits": listed_splits(cache.splits),
    }
