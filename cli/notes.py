"""Notes on a cache that its accuracies do not show: skipped images, classes without test images, no validation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .console import image_count

if TYPE_CHECKING:
    from taskres_cache.caches.contents import SplitName
    from taskres_cache.caches.feature_cache import FeatureCache

MOST_NAMED = 5


def untested_classes(cache: "FeatureCache") -> list[str]:
    """Return the names of the classes without a test image."""
    tested = set(cache.labels[cache.rows("test")].tolist())
    return [name for label, name in enumerate(cache.classnames) if label not in tested]


def test_notes(cache: "FeatureCache") -> list[str]:
    """Return notes on what an accuracy on the test images of a cache leaves out."""
    skipped, untested = len(cache.skipped), untested_classes(cache)
    notes = []
    if skipped:
        were = "was" if skipped == 1 else "were"
        notes.append(f"{cache.path}: {image_count(skipped)} {were} unreadable and skipped when the cache was made")
    if untested:
        classes = "1 class has" if len(untested) == 1 else f"{len(untested)} classes have"
        notes.append(f"{cache.path}: {classes} no test image and {_do(untested)} not count: {_named(untested)}")
    return notes


def left_out_of(cache: "FeatureCache") -> dict[str, Any]:
    """Return the same for JSON: path to reason of the skipped images, and the classes without test images."""
    return {"skipped": dict(cache.skipped), "classes_without_test_images": untested_classes(cache)}


def calibration_notes(cache: "FeatureCache", splits: "Sequence[SplitName]") -> list[str]:
    """Return a note if splits have no validation images to fit a temperature on."""
    without = [f"{shots} shots, seed {seed}" for shots, seed in splits if len(cache.split(shots, seed).val) == 0]
    if not without:
        return []
    of = "" if len(without) == len(splits) else f" for {'; '.join(without)}"
    return [f"{cache.path} has no validation images{of}: the temperature is 1, probabilities are not calibrated"]


def _do(things: Sequence[str]) -> str:
    return "does" if len(things) == 1 else "do"


def _named(names: Sequence[str]) -> str:
    """Return some names, and how many there are more."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more
