"""What a cache leaves out, for JSON, and notes on splits without validation images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskres_cache.datasets.sampling import shots_text
from taskres_cache.reporting.notes import untested_classes

if TYPE_CHECKING:
    from taskres_cache.caches.contents import SplitName
    from taskres_cache.caches.feature_cache import FeatureCache


def left_out_of(cache: "FeatureCache") -> dict[str, Any]:
    """Return the same for JSON: path to reason of the skipped images, and the classes without test images."""
    return {"skipped": dict(cache.skipped), "classes_without_test_images": untested_classes(cache)}


def text_notes(cache: "FeatureCache") -> list[str]:
    """Return a note on what a cache without text features cannot give."""
    if cache.has_text:
        return []
    means = "the mean image of each class takes the place of the text"
    return [f"{cache.path} has no text features: {means}, and there is no zero-shot accuracy"]


def calibration_notes(cache: "FeatureCache", splits: "Sequence[SplitName]") -> list[str]:
    """Return a note if splits have no validation images to fit a temperature on."""
    without = [
        f"{shots_text(shots)} shots, seed {seed}" for shots, seed in splits if len(cache.split(shots, seed).val) == 0
    ]
    if not without:
        return []
    of = "" if len(without) == len(splits) else f" for {'; '.join(without)}"
    return [f"{cache.path} has no validation images{of}: the temperature is 1, probabilities are not calibrated"]
