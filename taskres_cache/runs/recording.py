"""What a run records about a fit: the classifier, and the fields of `Metrics`.

Functions that return a dictionary return some fields of `Metrics` by name.
"""

from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import repeat
from typing import Any

import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.heads import Head
from taskres_cache.methods.search import SearchedFit
from taskres_cache.methods.task_residual.task import Fit, FitTask
from taskres_cache.methods.temperature import fit_temperature
from taskres_cache.runs.bases import StartingBase
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.evaluation import calibration_errors, percent_correct
from taskres_cache.runs.metrics import ImageCounts, Tuning
from taskres_cache.runs.scores import Predictions, class_accuracies

LIBRARIES = ("taskres-cache", "torch", "numpy")


@dataclass(frozen=True)
class FittedSplit:
    """A recipe fitted on a split.

    Parameters
    ----------
    name : (int, int)
        Shots and seed.
    start : StartingBase
        What the residual started from.
    task : FitTask
        What was fitted.
    fit : Fit
        The residual.
    search : SearchedFit, optional
        What the fit was chosen from, if there was a choice.
    """

    name: SplitName
    start: StartingBase
    task: FitTask
    fit: Fit
    search: SearchedFit | None = None


def classifier_of(cache: FeatureCache, fitted: FittedSplit) -> Classifier:
    """Return the classifier of a fit, with its temperature fitted on the validation images."""
    uncalibrated = Classifier(
        base=fitted.start.base,
        residual=fitted.fit.residual,
        classnames=cache.classnames,
        templates=cache.templates,
        alpha=fitted.fit.alpha,
        recipe=fitted.task.recipe,
        shots=fitted.name[0],
        seed=fitted.name[1],
        provenance=cache.provenance,
        class_ids=cache.class_ids,
        half=cache.half,
        image_residual=fitted.fit.image_residual,
        projection=fitted.start.projection,
    )
    validation = fitted.task.validation
    if validation is None:
        return uncalibrated
    logits = uncalibrated.head.logits(torch.from_numpy(validation.image_features))
    return replace(uncalibrated, temperature=fit_temperature(logits, torch.from_numpy(validation.labels).long()))


def identity(cache: FeatureCache, classifier: Classifier) -> dict[str, Any]:
    """Return the fields that identify a run and its inputs."""
    provenance, recipe = cache.provenance, classifier.recipe
    split = cache.split(classifier.shots, classifier.seed)
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
        "images": ImageCounts(len(split.train), len(split.val), len(cache.rows("test"))),
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
    """Return the accuracies on the validation images of the split, in percent, and the temperature fitted on them."""
    base = Head.of_arrays(classifier.base, classifier.provenance.logit_scale)
    names = ("zero_shot_val_accuracy", "base_val_accuracy", "val_accuracy")
    rows = cache.split(classifier.shots, classifier.seed).val
    accuracies = percent_correct(cache, rows, [zero_shot, base, classifier.head], device)
    return dict(zip(names, accuracies or repeat(None), strict=False)) | {"temperature": classifier.temperature}


def history(fitted: FittedSplit) -> dict[str, Any]:
    """Return the losses of the base's tuning and of the fit, and what was chosen from which candidates."""
    start, search = fitted.start, fitted.search
    return {
        "base_tuning": Tuning(start.losses, start.kept_epochs) if start.losses else None,
        "chosen": None if search is None else search.best,
        "candidates": None if search is None else search.candidates,
        "epoch_losses": fitted.fit.losses,
        "kept_epochs": fitted.fit.kept_epochs,
    }
