"""What a fit leaves: the classifier, the fields of `Metrics`, and the folder that they are written to.

Functions that return a dictionary return some fields of `Metrics` by name.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from time import time
from typing import Any

import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import CacheError, RunError, StorageError
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.choice import MethodRecord
from taskres_cache.methods.search import SearchedFit
from taskres_cache.methods.task_residual.task import Fit, FitTask
from taskres_cache.methods.temperature import fit_temperature
from taskres_cache.recipe import Recipe
from taskres_cache.runs.classifier import Classifier, ResidualClassifier
from taskres_cache.runs.evaluation import calibration_errors, percent_correct
from taskres_cache.runs.finding import CLASSIFIER_FILE, METRICS_FILE, UNFINISHED, folders_of_run, is_unfinished
from taskres_cache.runs.fitting.inputs import StartingBase
from taskres_cache.runs.metrics import AgainstZeroShot, ImageCounts, Metrics, Tuning
from taskres_cache.runs.run import Run, read_classifier, read_metrics, recorded_inputs, write_run
from taskres_cache.runs.scores import ImageHits, Predictions, class_accuracies
from taskres_cache.runs.statistics.intervals import (
    Hits,
    accuracy_interval,
    mean_class_accuracy,
    mean_class_accuracy_interval,
    paired_difference,
)
from taskres_cache.system.version import library_version

DIGITS = 8  # of inputs_sha256 in the name of a folder
SECONDS_UNTIL_LEFTOVER = 3600.0  # a run is written in less than a second
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


def refuse_unusable(cache: FeatureCache, splits: Sequence[SplitName]) -> None:
    """Raise OptionError or CacheError if the cache does not have a split, or has no test images."""
    for name in splits:
        cache.split(*name)
    if len(cache.rows("test")) == 0:
        raise CacheError(
            f"{cache.path} has no test images to measure a fit on; fix the images that could not be read, or add some, "
            "and run the command that made the cache again"
        )


def classifier_of(cache: FeatureCache, fitted: FittedSplit, device: torch.device) -> ResidualClassifier:
    """Return the classifier of a fit, with its temperature fitted on the validation images, on a device."""
    uncalibrated = ResidualClassifier(
        base=fitted.start.base,
        residual=fitted.fit.residual,
        classnames=cache.classnames,
        templates=cache.used_templates,
        prompts=cache.prompts,
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
    logits = uncalibrated.head.to(device).logits(torch.from_numpy(validation.image_features).to(device))
    return uncalibrated.calibrated(fit_temperature(logits, torch.from_numpy(validation.labels).long()))


def identity(cache: FeatureCache, classifier: Classifier) -> dict[str, Any]:
    """Return the fields that identify a run and its inputs."""
    provenance = cache.provenance
    split = cache.split(classifier.shots, classifier.seed)
    return {
        "dataset": provenance.dataset,
        "backbone": provenance.backbone,
        "pretrained": provenance.pretrained,
        "weights_sha256": provenance.weights_sha256,
        "shots": classifier.shots,
        "seed": classifier.seed,
        "classes": classifier.half,
        "method": classifier.method,
        "prompts": classifier.prompts,
        "cache": str(cache.path),
        "versions": {name: library_version(name) for name in LIBRARIES},
        "images": ImageCounts(len(split.train), len(split.val), len(cache.rows("test"))),
    }


def base_head(classifier: ResidualClassifier) -> CosineHead:
    """Return the head of the base of a residual, without its temperature."""
    return CosineHead.of_arrays(classifier.base, classifier.provenance.logit_scale)


def recipe_fields(classifier: ResidualClassifier) -> dict[str, Any]:
    """Return the fields that say how a residual was trained."""
    recipe = classifier.recipe
    return {"recipe": recipe, "alpha": classifier.alpha, "epochs": recipe.epochs_for(classifier.shots)}


def accuracies_on_test(
    zero_shot: Predictions | None, base: Predictions | None, adapted: Predictions, classes: int
) -> dict[str, Any]:
    """Return the accuracies of zero-shot, base, and base + residual on the test images, in percent."""
    error, untempered = calibration_errors(adapted)
    return {
        "zero_shot_accuracy": None if zero_shot is None else zero_shot.accuracy,
        "base_accuracy": None if base is None else base.accuracy,
        "test_accuracy": adapted.accuracy,
        "top5_accuracy": adapted.top5_accuracy,
        "calibration_error": error,
        "untempered_calibration_error": untempered,
        "zero_shot_class_accuracies": None if zero_shot is None else tuple(class_accuracies(zero_shot, classes)),
        "class_accuracies": tuple(class_accuracies(adapted, classes)),
        **_uncertainty(zero_shot, adapted),
    }


def _uncertainty(zero_shot: Predictions | None, adapted: Predictions) -> dict[str, Any]:
    """Return the intervals of the test accuracies, and the comparison with zero-shot if there is text."""
    hits, labels = Hits.of_fits([adapted.correct]), adapted.labels
    against = None if zero_shot is None else paired_difference(hits, Hits.of_fits([zero_shot.correct]))
    return {
        "accuracy_interval": accuracy_interval(hits),
        "mean_class_accuracy": mean_class_accuracy(hits, labels),
        "mean_class_accuracy_interval": mean_class_accuracy_interval(hits, labels),
        "against_zero_shot": against and AgainstZeroShot(against.difference, against.interval, against.p_value),
    }


def tested_images(zero_shot: Predictions | None, adapted: Predictions) -> ImageHits:
    """Return which test images a fit and, if there is text, zero-shot classify correctly."""
    return ImageHits(adapted.labels, adapted.correct, None if zero_shot is None else zero_shot.correct)


def accuracies_on_val(
    cache: FeatureCache, classifier: Classifier, zero_shot: Head | None, base: Head | None, device: torch.device
) -> dict[str, Any]:
    """Return the accuracies on the validation images of the split, in percent, and the temperature fitted on them."""
    named = {"zero_shot_val_accuracy": zero_shot, "base_val_accuracy": base, "val_accuracy": classifier.head}
    heads = {name: head for name, head in named.items() if head is not None}
    rows = cache.split(classifier.shots, classifier.seed).val
    accuracies = percent_correct(cache, rows, list(heads.values()), device)
    found = dict(zip(heads, accuracies or repeat(None), strict=False))
    return dict.fromkeys(named) | found | {"temperature": classifier.temperature}


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


def place_run(folder: Path, classifier: Classifier, metrics: Metrics) -> Run:
    """Write a run to its folder, or next to it if the folder holds a run of other inputs, or one that is unreadable.

    A folder of a run with the same inputs and recipe is replaced: the result is the same. A new folder appears
    complete, so that two processes cannot write to the same one.

    Raises
    ------
    StorageError
        The folder is not writable.
    """
    _discard_leftovers(folder.parent)
    kept = None
    for target in _names(folder, metrics.inputs_sha256):
        written = _created(target, classifier, metrics)
        if written is None and _holds_same_run(target, metrics):
            written = write_run(target, classifier, metrics)
        if written is not None:
            return Run(target, written, kept)
        kept = kept or target
    raise AssertionError("names are endless")


def intact_run(folder: Path, inputs_sha256: str, study_sha256: str, how: Recipe | MethodRecord) -> Run | None:
    """Return the run with these inputs that was trained in this way, in its folder or next to it; None without one.

    Runs of earlier versions do not record `study_sha256`.
    """
    for candidate in folders_of_run(folder):
        metrics = _metrics_of_intact_run(candidate)
        if (
            metrics is not None
            and metrics.inputs_sha256 == inputs_sha256
            and metrics.study_sha256 in ("", study_sha256)
            and metrics.how == how
        ):
            return Run(candidate, metrics)
    return None


def _metrics_of_intact_run(folder: Path) -> Metrics | None:
    """Return the metrics of a run folder; None if it holds no intact run."""
    try:
        read_classifier(folder)
        return read_metrics(folder)
    except RunError:
        return None


def path_from(folder: Path, file: Path) -> str:
    """Return the path of a file relative to a folder; empty if there is none, as between drives."""
    try:
        return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return ""


def _names(folder: Path, inputs_sha256: str) -> Iterator[Path]:
    """Yield the folders to try: `seed_1`, `seed_1-<digits>`, `seed_1-<digits>-2` and so on."""
    yield folder
    other = folder.with_name(f"{folder.name}-{inputs_sha256[:DIGITS]}")
    yield other
    for number in count(2):
        yield other.with_name(f"{other.name}-{number}")


def _holds_same_run(folder: Path, metrics: Metrics) -> bool:
    """Return True if a folder holds no run, or what is readable of its run has the same inputs and recipe."""
    if not any((folder / name).exists() for name in (CLASSIFIER_FILE, METRICS_FILE)):
        return True
    recorded = recorded_inputs(folder)
    return bool(recorded) and all(
        inputs == metrics.inputs_sha256 and study in (None, metrics.study_sha256) and how == metrics.how
        for inputs, study, how in recorded
    )


def _created(folder: Path, classifier: Classifier, metrics: Metrics) -> Metrics | None:
    """Write a run to a new folder, which appears complete, and return its metrics; None if the folder exists."""
    if folder.exists():
        return None
    unfinished = folder.with_name(f".{folder.name}.{token_hex(8)}{UNFINISHED}")
    try:
        written = write_run(unfinished, classifier, metrics)
        os.rename(unfinished, folder)  # fails if another process has made the folder meanwhile
    except OSError as error:
        if folder.is_dir():
            return None
        raise StorageError(
            f"{folder} cannot be written ({error.strerror or error}); choose another folder, or free disk space"
        ) from error
    finally:
        rmtree(unfinished, ignore_errors=True)
    return written


def _discard_leftovers(parent: Path) -> None:
    """Remove folders that killed processes left unfinished."""
    with suppress(OSError):
        for folder in parent.iterdir():
            if is_unfinished(folder) and time() - folder.stat().st_mtime > SECONDS_UNTIL_LEFTOVER:
                rmtree(folder, ignore_errors=True)
