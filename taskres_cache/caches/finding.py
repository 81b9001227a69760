"""Find a cache from what the user typed, and describe a cache."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskres_cache.caches.contents import listed_splits
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import PARTITIONS
from taskres_cache.errors import OptionError, UnknownNameError
from taskres_cache.system.text import command


def find_cache(file_or_name: str, cache_dir: Path, checkpoint: str | None = None) -> Path:
    """Return the path of a cache.

    Parameters
    ----------
    file_or_name : str
        A cache file, the name of a cached data set, or the image folder that was cached.
    cache_dir : Path
        Folder of all caches.
    checkpoint : str, optional
        `<backbone>-<pretrained>` to prefer if the data set is cached for several checkpoints.

    Raises
    ------
    UnknownNameError
        `file_or_name` is neither a file nor the name of a cached data set.
    OptionError
        The data set is cached for several checkpoints.
    """
    path = Path(file_or_name)
    if path.is_file() or path.suffix == ".h5":
        return path
    name = path.resolve().name if path.is_dir() else file_or_name
    cached = sorted(cache_dir.glob("*/*.h5"))
    found = [candidate for candidate in cached if candidate.stem == name]
    if not found:
        extract = command("taskres", "extract", file_or_name)
        remedy = f"make it with `{extract}` or pass --cache-dir (searched: {cache_dir})"
        raise UnknownNameError("cache", file_or_name, {candidate.stem for candidate in cached}, remedy)
    preferred = [candidate for candidate in found if candidate.parent.name == checkpoint]
    if preferred:
        return preferred[0]
    if len(found) > 1:
        raise OptionError(
            f"{file_or_name!r} is cached for several checkpoints; pass one of these files: {', '.join(map(str, found))}"
        )
    return found[0]


def describe_cache(cache: FeatureCache) -> dict[str, Any]:
    """Return provenance and counts of a cache as plain values, in display order."""
    counts = {partition: len(cache.rows(partition)) for partition in PARTITIONS}
    return {
        **asdict(cache.provenance),
        "created_at": cache.created_at,
        "created_by": cache.created_by,
        "classes": len(cache.classnames),
        "templates": list(cache.templates),
        "images": counts,
        "augmented_views": cache.views,
        "view_families": {name: facts.views for name, facts in cache.view_families.items()},
        "prompt_sets": list(cache.prompt_sets),
        "default_prompts": cache.default_prompts,
        "shown_names": sum(map(str.__ne__, cache.shown_names or cache.classnames, cache.classnames)),
        "pre_projection": cache.has_pre_projection,
        "skipped_images": len(cache.skipped),
        "splits": listed_splits(cache.splits),
    }
