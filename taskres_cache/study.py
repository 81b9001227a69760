"""A study: one fit for every shot count and seed of a cache, each left as a run folder, and the table over seeds."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from taskres_cache.contents import SplitName
from taskres_cache.errors import CacheError, RunError
from taskres_cache.evaluation import LabelledFeatures, percent_correct
from taskres_cache.fitting import Fit, TrainingSet, fit_residual, regular_base
from taskres_cache.recipe import Recipe
from taskres_cache.runs import Classifier, read_classifier, read_metrics, run_folder, write_run
from taskres_cache.store import FeatureCache


@dataclass(frozen=True)
class RunResult:
    """One run of a study: where it lies, and what `metrics.json` says."""

    folder: Path
    metrics: dict[str, Any]


def recipe_of(cache: FeatureCache, **choices: Any) -> Recipe:
    """Return the data set's own recipe, as the cache records it, with the choices that are not None put in.

    Raises CacheError when the recipe has fields that this version does not know, OptionError for an unusable choice.
    """
    try:
        recipe = Recipe(**cache.provenance.recipe)
    except TypeError as error:
        raise CacheError(
            f"{cache.path} records a recipe of a newer version ({error}); upgrade taskres-cache"
        ) from error
    return recipe.changed(**choices)


def run_study(
    cache: FeatureCache, splits: Sequence[SplitName], recipe: Recipe, device: torch.device, out: Path
) -> Iterator[RunResult]:
    """Fit, evaluate and write one run after the other.

    Test features are read here, for the evaluation alone: a fit is handed the training rows and nothing else.

    Raises
    ------
    OptionError : a split that the cache does not hold, before anything is fitted.
    StorageError : a run folder cannot be written.
    """
    rows = {name: cache.split(*name) for name in splits}
    base = regular_base(cache.text_bases().embeddings)  # (C, D)
    test = LabelledFeatures.of(cache, cache.rows("test"))
    zero_shot, shared = percent_correct(test, base, device), _shared_inputs(cache, base, test)
    for (count, seed), split in rows.items():
        train, val = LabelledFeatures.of(cache, split.train), LabelledFeatures.of(cache, split.val)
        training = TrainingSet(train.image_features, train.labels)
        fit = fit_residual(training, base, cache.provenance.logit_scale, recipe, recipe.epochs_for(count), seed, device)
        classifier = classifier_of(cache, base, fit, recipe, count, seed)
        facts = {
            **_identity(cache, classifier),
            "inputs_sha256": _digest(shared, train, val),
            "zero_shot_accuracy": zero_shot,
            **_measured(classifier, val, test, fit, device),
            "images": {"train": len(train.labels), "val": len(val.labels), "test": len(test.labels)},
        }
        folder = run_folder(out, cache.provenance, recipe, cache.half, count, seed)
        write_run(folder, classifier, facts)
        yield RunResult(folder, facts)


def finished_runs(
    cache: FeatureCache, splits: Sequence[SplitName], recipe: Recipe, out: Path
) -> dict[SplitName, RunResult]:
    """Return those runs of a study that are there already: same recipe, and fitted and tested on the very same numbers.

    Raises OptionError for a split that the cache does not hold.
    """
    base, test = regular_base(cache.text_bases().embeddings), LabelledFeatures.of(cache, cache.rows("test"))
    shared, found = _shared_inputs(cache, base, test), {}
    for name in splits:
        split = cache.split(*name)
        folder = run_folder(out, cache.provenance, recipe, cache.half, *name)
        inputs = _digest(shared, *(LabelledFeatures.of(cache, rows) for rows in (split.train, split.val)))
        metrics = _metrics_of_intact_run(folder)
        if metrics.get("inputs_sha256") == inputs and metrics.get("recipe") == recipe.as_dict():
            found[name] = RunResult(folder, metrics)
    return found


def classifier_of(cache: FeatureCache, base: np.ndarray, fit: Fit, recipe: Recipe, shots: int, seed: int) -> Classifier:
    """Return a fit as a classifier that knows where its features came from."""
    return Classifier(
        base=base,
        residual=fit.residual,
        classnames=cache.classnames,
        templates=cache.templates,
        alpha=recipe.alpha,
        recipe=recipe,
        shots=shots,
        seed=seed,
        provenance=cache.provenance,
        class_ids=cache.class_ids,
        half=cache.half,
    )


def _shared_inputs(cache: FeatureCache, base: np.ndarray, test: LabelledFeatures) -> str:
    """Return the digest of what all runs of a study have in common."""
    return _digest(repr((cache.provenance.logit_scale, cache.classnames)), base, test)


def _digest(*parts: str | np.ndarray | LabelledFeatures) -> str:
    """Return the SHA-256 of arrays and of other digests, by which equal inputs of a run are known."""
    digest = sha256()
    for part in parts:
        arrays = (part.image_features, part.labels) if isinstance(part, LabelledFeatures) else (part,)
        for array in arrays:
            digest.update(array.encode() if isinstance(array, str) else np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _metrics_of_intact_run(folder: Path) -> dict[str, Any]:
    """Return the metrics of a run folder, or nothing when there is no intact run."""
    try:
        read_classifier(folder)
        return read_metrics(folder)
    except RunError:
        return {}


def _measured(
    classifier: Classifier, val: LabelledFeatures, test: LabelledFeatures, fit: Fit, device: torch.device
) -> dict[str, Any]:
    """Return accuracies in percent, the loss of each epoch and the seconds that all took."""
    started = perf_counter()
    accuracies = {
        "test_accuracy": percent_correct(test, classifier.weights, device),
        "zero_shot_val_accuracy": percent_correct(val, classifier.base, device),
        "val_accuracy": percent_correct(val, classifier.weights, device),
    }
    seconds = {"fit": fit.seconds, "evaluate": perf_counter() - started}
    return {**accuracies, "epoch_losses": list(fit.losses), "seconds": seconds, "device": str(device)}


@dataclass(frozen=True)
class Summary:
    """Test accuracy of one shot count over seeds: mean, and standard deviation (of a sample; None for one seed)."""

    shots: int
    seeds: tuple[int, ...]
    zero_shot_accuracy: float
    mean_val_accuracy: float | None
    mean_test_accuracy: float
    std_test_accuracy: float | None


def summarise(all_metrics: Iterable[dict[str, Any]]) -> list[Summary]:
    """Return one summary a shot count, shots rising."""
    by_shots: dict[int, list[dict[str, Any]]] = {}
    for metrics in all_metrics:
        by_shots.setdefault(metrics["shots"], []).append(metrics)
    return [_summary(shots, runs) for shots, runs in sorted(by_shots.items())]


def _summary(shots: int, runs: list[dict[str, Any]]) -> Summary:
    tests = [run["test_accuracy"] for run in runs]
    vals = [run["val_accuracy"] for run in runs if run["val_accuracy"] is not None]
    return Summary(
        shots,
        tuple(run["seed"] for run in runs),
        statistics.mean(run["zero_shot_accuracy"] for run in runs),
        statistics.mean(vals) if vals else None,
        statistics.mean(tests),
        statistics.stdev(tests) if len(tests) > 1 else None,
    )


def _identity(cache: FeatureCache, classifier: Classifier) -> dict[str, Any]:
    """Return what a run is of, for its metrics."""
    made_from, recipe = cache.provenance, classifier.recipe
    return {
        "dataset": made_from.dataset,
        "backbone": made_from.backbone,
        "pretrained": made_from.pretrained,
        "weights_sha256": made_from.weights_sha256,
        "shots": classifier.shots,
        "seed": classifier.seed,
        "classes": classifier.half,
        "method": recipe.method_name(),
        "recipe": recipe.as_dict(),
        "epochs": recipe.epochs_for(classifier.shots),
        "cache": str(cache.path),
        "versions": {name: version(name) for name in ("taskres-cache", "torch", "numpy")},
    }
