"""How well a classifier does on the features of a cache.

Axes: N images, C classes of the cache, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from taskres_cache.contents import UNKNOWN
from taskres_cache.errors import RunError
from taskres_cache.residual import accuracy
from taskres_cache.runs import Classifier
from taskres_cache.store import FeatureCache


@dataclass(frozen=True)
class LabelledFeatures:
    """Un-normalised features (N, D), float32, and labels (N,) of some rows of a cache."""

    image_features: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, cache: FeatureCache, rows: np.ndarray) -> "LabelledFeatures":
        """Read some rows of a cache."""
        return cls(cache.image_features(rows), cache.labels[rows])


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent of one run on one cache's test part: of the base alone, and of base + residual."""

    cache: Path
    dataset: str
    images: int
    classes: int
    zero_shot_accuracy: float
    test_accuracy: float


def percent_correct(features: LabelledFeatures, weights: np.ndarray, device: torch.device) -> float | None:
    """Return the accuracy of un-normalised weights (C, D) in percent; None where there is no image."""
    if len(features.labels) == 0:
        return None
    on_device = (torch.from_numpy(array).to(device) for array in (features.image_features, features.labels, weights))
    return accuracy(*on_device)


def evaluate_run(classifier: Classifier, cache: FeatureCache, device: torch.device) -> Evaluation:
    """Return a run's accuracy on the test part of a cache, its own or another of the same checkpoint.

    Raises
    ------
    RunError : the cache has another checkpoint's features, or classes that the run does not know.
    """
    rows = class_rows(classifier, cache)
    test = LabelledFeatures.of(cache, cache.rows("test"))
    zero_shot = percent_correct(test, classifier.base[rows], device)
    adapted = percent_correct(test, classifier.weights[rows], device)
    if zero_shot is None or adapted is None:
        raise RunError(f"{cache.path} has no test image")
    return Evaluation(cache.path, cache.provenance.dataset, len(test.labels), len(rows), zero_shot, adapted)


def class_rows(classifier: Classifier, cache: FeatureCache) -> np.ndarray:
    """Return the classifier's row for each class of a cache (C,), matched by name; a cache may have fewer classes."""
    _refuse_other_features(classifier, cache)
    row_of = {name: row for row, name in enumerate(classifier.classnames)}
    unknown = [name for name in cache.classnames if name not in row_of]
    if unknown:
        raise RunError(
            f"{cache.path} has {len(unknown)} of {len(cache.classnames)} classes that the run does not know "
            f"({', '.join(repr(name) for name in unknown[:3])}); fit a run on a cache that has them"
        )
    return np.array([row_of[name] for name in cache.classnames])


def _refuse_other_features(classifier: Classifier, cache: FeatureCache) -> None:
    """Raise RunError when a cache's features do not come from the run's encoder and preprocessing."""
    run, has = classifier.provenance, cache.provenance
    imported = run.weights_sha256 == UNKNOWN  # such features are known by their names alone
    fields = ["backbone", "pretrained"] if imported else ["weights_sha256", "model_config", "preprocess"]
    differing = [
        f"{name}: cache has {getattr(has, name)!r}, run has {getattr(run, name)!r}"
        for name in fields
        if getattr(has, name) != getattr(run, name)
    ]
    if cache.dim != classifier.base.shape[1]:
        differing.append(f"width: cache has {cache.dim}, run has {classifier.base.shape[1]}")
    if differing:
        raise RunError(
            f"{cache.path} holds features of another checkpoint than the run: {'; '.join(differing)}; "
            "extract it with the run's backbone and weights"
        )
