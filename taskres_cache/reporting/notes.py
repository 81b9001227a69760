"""Notes on what an accuracy on the test images of a cache leaves out. Does not need torch."""

from collections.abc import Sequence

from taskres_cache.caches.feature_cache import FeatureCache

MOST_NAMED = 5


def untested_classes(cache: FeatureCache) -> list[str]:
    """Return the names of the classes without a test image."""
    tested = set(cache.labels[cache.rows("test")].tolist())
    return [name for label, name in enumerate(cache.classnames) if label not in tested]


def test_notes(cache: FeatureCache) -> list[str]:
    """Return notes on what an accuracy on the test images of a cache leaves out."""
    skipped, untested = len(cache.skipped), untested_classes(cache)
    notes = []
    if skipped:
        images = "1 image was" if skipped == 1 else f"{skipped} images were"
        notes.append(f"{cache.path}: {images} unreadable and skipped when the cache was made")
    if untested:
        classes = "1 class has" if len(untested) == 1 else f"{len(untested)} classes have"
        do = "does" if len(untested) == 1 else "do"
        notes.append(f"{cache.path}: {classes} no test image and {do} not count: {_named(untested)}")
    return notes


def _named(names: Sequence[str]) -> str:
    """Return some names, and how many there are more."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more
