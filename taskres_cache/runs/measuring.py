"""The parts of `metrics.json`: what identifies a run, its accuracies, and the history of its fit.

Each function returns some fields of `Metrics` by name.
"""

from importlib.metadata import version
from itertools import repeat
from typing import Any

import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.heads import Head
from taskres_cache.methods.search import SearchedFit
from taskres_cache.methods.task_residual.task import Fit
from taskres_cache.runs.bases import Start
from taskres_cache.runs.evaluation import calibration_errors, percent_correct
from taskres_cache.runs.measures import Predictions, class_accuracies
from taskres_cache.runs.metrics import ImageCounts, Tuning
from taskres_cache.runs.run import Classifier

LIBRARIES = ("taskres-cache", "torch", "numpy")


def identity(cache: FeatureCache, classifier: Classifier) -> dict[str, Any]:
    """Return what identifies a run."""
    provenance, recipe = cache.provenance, classifier.recipe
    return {
        "dataset": provenance.dataset,
        "backbone": provenance.backbone,
        "pretrained": provenance.pretrained,
        "weights_sha256": provenance.weights_sha256,
        "shots": classifier.shots,
        "seed": classifier.seed,
        "classes": classifier.half,
        "method": recipe.method_name(),
        "recipe": recipe,
        "alpha": classifier.alpha,
        "epochs": recipe.epochs_for(classifier.shots),
        "cache": str(cache.path),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def accuracies_on_test(zero_shot: Predictions, base: Predictions, adapted: Predictions, classes: int) -> dict[str, Any]:
    """Return the accuracies of zero-shot, base, and base + residual on the test images, in percent."""
    error, untempered = calibration_errors(adapted)
    return {
        "zero_shot_accuracy": zero_shot.accuracy,
        "base_accuracy": base.accuracy,
        "test_accuracy": adapted.accuracy,
        "top5_accuracy": adapted.top5_accuracy,
        "calibration_error": error,
        "untempered_calibration_error": untempered,
        "zero_shot_class_accuracies": tuple(class_accuracies(zero_shot, classes)),
        "class_accuracies": tuple(class_accuracies(adapted, classes)),
    }


def accuracies_on_val(
    cache: FeatureCache, classifier: Classifier, zero_shot: Head, device: torch.device
) -> dict[str, Any]:
    """Return the accuracies on the split's validation images, in percent, and the temperature fitted on them."""
    base = Head.of_arrays(classifier.base, classifier.provenance.logit_scale)
    names = ("zero_shot_val_accuracy", "base_val_accuracy", "val_accuracy")
    rows = cache.split(classifier.shots, classifier.seed).val
    accuracies = percent_correct(cache, rows, [zero_shot, base, classifier.head], device)
    return dict(zip(names, accuracies or repeat(None), strict=False)) | {"temperature": classifier.temperature}


def history(start: Start, fit: Fit, chosen: SearchedFit | None) -> dict[str, Any]:
    """Return the losses of base and fit, and what was chosen from what."""
    return {
        "base_tuning": Tuning(start.losses, start.kept_epochs) if start.losses else None,
        "chosen": None if chosen is None else chosen.best,
        "candidates": None if chosen is None else chosen.candidates,
        "epoch_losses": fit.losses,
        "kept_epochs": fit.kept_epochs,
    }


def image_counts(cache: FeatureCache, name: SplitName) -> ImageCounts:
    """Return the number of images of each part of a split."""
    split = cache.split(*name)
    return ImageCounts(len(split.train), len(split.val), len(cache.rows("test")))
