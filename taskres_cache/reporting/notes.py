"""Notes on what an accuracy on the test images of a cache leaves out. Does not need torch."""

from collections.abc import Sequence
from math import exp

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.schema import is_likely_logarithm

MOST_NAMED = 5


def untested_classes(cache: FeatureCache) -> list[str]:
    """Return the names of the classes without a test image."""
    tested = set(cache.labels[cache.rows("test")].tolist())
    return [name for label, name in enumerate(cache.classnames) if label not in tested]


def test_notes(cache: FeatureCache) -> list[str]:
    """Return notes on what an accuracy on the test images of a cache leaves out, and on an unlikely logit scale."""
    skipped, untested = len(cache.skipped), untested_classes(cache)
    notes = []
    if skipped:
        images = "1 image was" if skipped == 1 else f"{skipped} images were"
        notes.append(f"{cache.path}: {images} unreadable and skipped when the cache was made")
    if untested:
        classes = "1 class has" if len(untested) == 1 else f"{len(untested)} classes have"
        do = "does" if len(untested) == 1 else "do"
        notes.append(f"{cache.path}: {classes} no test image and {do} not count: {_named(untested)}")
    if is_likely_logarithm(scale := cache.provenance.logit_scale):
        notes.append(
            f"{cache.path}: logit_scale is {scale:.6g}, nearly certainly the logarithm of {exp(scale):.4g}, with which "
            "fits learn little; make the cache again with the multiplier"
        )
    return notes


def _named(names: Sequence[str]) -> str:
    """Return some names, and how many there are more."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more
