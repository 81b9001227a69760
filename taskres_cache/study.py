"""A study: one fit for every shot count, seed and recipe of a cache, each left as a run folder."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from taskres_cache.contents import SplitName
from taskres_cache.errors import CacheError, OptionError, RunError
from taskres_cache.evaluation import percent_correct
from taskres_cache.fitting import (
    Fit,
    FitTask,
    TrainingSet,
    ValidationSet,
    fit_residuals,
    regular_base,
    stack_size,
)
from taskres_cache.recipe import Recipe
from taskres_cache.runs import Classifier, read_classifier, read_metrics, run_folder, write_run
from taskres_cache.selection import Candidate, fit_with_chosen_alpha
from taskres_cache.store import FeatureCache


@dataclass(frozen=True)
class RunResult:
    """One run of a study: where it lies, and what `metrics.json` says."""

    folder: Path
    metrics: dict[str, Any]


def recipe_of(cache: FeatureCache, **choices: Any) -> Recipe:
    """Return the data set's own recipe, as the cache records it, with the choices that are not None put in.

    A cache with augmented views is fitted on all of them, as the paper augments, unless the choices say otherwise.

    Raises CacheError when the recipe has fields that this version does not know, OptionError for an unusable choice.
    """
    try:
        recipe = Recipe(**cache.provenance.recipe)
    except TypeError as error:
        raise CacheError(
            f"{cache.path} records a recipe of a newer version ({error}); upgrade taskres-cache"
        ) from error
    return recipe.changed(**{"views": cache.views, **{name: one for name, one in choices.items() if one is not None}})


def run_study(
    cache: FeatureCache, splits: Sequence[SplitName], recipes: Sequence[Recipe], device: torch.device, out: Path
) -> Iterator[RunResult]:
    """Fit, evaluate and write a run for every split and recipe.

    As many splits go together as the device gains by (see `fitting.stack_size`); their classifiers meet the test
    features together, a piece at a time. A fit is handed the train and val rows of its split and nothing else.

    Raises
    ------
    OptionError : a split or views that the cache does not hold, before anything is fitted.
    StorageError : a run folder cannot be written.
    """
    for name in splits:
        cache.split(*name)
    _refuse_missing_views(cache, recipes)
    shared = _shared(cache, device)
    at_once = max(1, stack_size(shared.base.size, device) // len(recipes))
    for start in range(0, len(splits), at_once):
        yield from _run_together(cache, splits[start : start + at_once], recipes, shared, device, out)


def finished_runs(
    cache: FeatureCache, splits: Sequence[SplitName], recipe: Recipe, out: Path
) -> dict[SplitName, RunResult]:
    """Return those runs of a study that are there already: same recipe, and fitted and tested on the very same numbers.

    Raises OptionError for a split that the cache does not hold.
    """
    shared, found = _shared_digest(cache, regular_base(cache.text_bases().embeddings)), {}
    for name in splits:
        folder = run_folder(out, cache.provenance, recipe, cache.half, *name)
        metrics = _metrics_of_intact_run(folder)
        inputs = _digest(
            shared, _training_set(cache, name, recipe.views, recipe.view_use), _validation_set(cache, name)
        )
        if metrics.get("inputs_sha256") == inputs and metrics.get("recipe") == recipe.as_dict():
            found[name] = RunResult(folder, metrics)
    return found


@dataclass(frozen=True)
class _Shared:
    """What all runs of a study have in common: the base, its accuracy on test, and a digest of what they start from."""

    base: np.ndarray
    zero_shot_accuracy: float | None
    digest: str


@dataclass(frozen=True)
class _Fitted:
    """A task of a split, its fit, and the alphas that were tried for it."""

    name: SplitName
    task: FitTask
    fit: Fit
    candidates: tuple[Candidate, ...] = ()


def _run_together(
    cache: FeatureCache,
    names: Sequence[SplitName],
    recipes: Sequence[Recipe],
    shared: _Shared,
    device: torch.device,
    out: Path,
) -> Iterator[RunResult]:
    """Fit some splits with every recipe, evaluate all of them, write them one by one."""
    uses = dict.fromkeys((recipe.views, recipe.view_use) for recipe in recipes)
    named_tasks = [
        (
            name,
            FitTask(trainings[recipe.views, recipe.view_use], recipe, recipe.epochs_for(name[0]), name[1], validation),
        )
        for name in names
        for trainings in [{use: _training_set(cache, name, *use) for use in uses}]
        for validation in [_validation_set(cache, name)]
        for recipe in recipes
    ]
    fitted = _fitted(named_tasks, shared.base, cache.provenance.logit_scale, device)
    classifiers = [_classifier(cache, shared.base, one) for one in fitted]
    started = perf_counter()
    tests = percent_correct(cache, cache.rows("test"), [one.weights for one in classifiers], device)
    evaluation = (perf_counter() - started) / len(fitted)
    for one, classifier, test in zip(fitted, classifiers, tests or repeat(None), strict=False):
        measured = {
            "inputs_sha256": _digest(shared.digest, one.task.training, one.task.validation),
            "zero_shot_accuracy": shared.zero_shot_accuracy,
            "test_accuracy": test,
            **_measured(cache, one, classifier, device),
            "seconds": {"fit": one.fit.seconds, "evaluate": evaluation},
        }
        folder = run_folder(out, cache.provenance, classifier.recipe, cache.half, *one.name)
        metrics = {**_identity(cache, classifier), **measured}
        write_run(folder, classifier, metrics)
        yield RunResult(folder, metrics)


def _fitted(
    named_tasks: Sequence[tuple[SplitName, FitTask]], base: np.ndarray, logit_scale: float, device: torch.device
) -> list[_Fitted]:
    """Return every task fitted, those first that choose no alpha."""
    plain = [(name, task) for name, task in named_tasks if task.recipe.alpha_rule != "auto"]
    choosing = [(name, task) for name, task in named_tasks if task.recipe.alpha_rule == "auto"]
    fits = fit_residuals([task for _, task in plain], base, logit_scale, device)
    chosen = fit_with_chosen_alpha([task for _, task in choosing], base, logit_scale, device)
    return [
        *(_Fitted(name, task, fit) for (name, task), fit in zip(plain, fits, strict=True)),
        *(_Fitted(name, task, one.fit, one.candidates) for (name, task), one in zip(choosing, chosen, strict=True)),
    ]


def _training_set(cache: FeatureCache, name: SplitName, views: int, view_use: str) -> TrainingSet:
    """Return the train images of a split: themselves, their first augmented views, or the mean of those."""
    rows = cache.split(*name).train
    labels = cache.labels[rows]
    if views == 0:
        return TrainingSet.read(cache.pieces(rows), labels, cache.dim)
    pieces = cache.augmented_pieces(rows)
    if view_use == "walk":
        return TrainingSet.read_views(pieces, labels, cache.dim, views)
    means = ((positions, features[:, :views].mean(axis=1)) for positions, features in pieces)
    return TrainingSet.read(means, labels, cache.dim)


def _validation_set(cache: FeatureCache, name: SplitName) -> ValidationSet:
    """Return the val images of a split."""
    rows = cache.split(*name).val
    return ValidationSet(cache.image_features(rows), cache.labels[rows])


def _refuse_missing_views(cache: FeatureCache, recipes: Sequence[Recipe]) -> None:
    """Raise OptionError when a recipe wants more augmented views than the cache has."""
    most = max(recipe.views for recipe in recipes)
    if most > cache.views:
        raise OptionError(
            f"{cache.path} has {cache.views or 'no'} augmented views of its train images, expected {most}; add them "
            f"with the command that made the cache and --views {most}"
        )


def _classifier(cache: FeatureCache, base: np.ndarray, fitted: _Fitted) -> Classifier:
    """Return a fit as a classifier that knows where its features came from."""
    return Classifier(
        base=base,
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
    )


def _shared(cache: FeatureCache, device: torch.device) -> _Shared:
    base = regular_base(cache.text_bases().embeddings)  # (C, D)
    accuracies = percent_correct(cache, cache.rows("test"), [base], device)
    return _Shared(base, accuracies[0] if accuracies else None, _shared_digest(cache, base))


def _shared_digest(cache: FeatureCache, base: np.ndarray) -> str:
    test = cache.rows("test")
    digest = sha256(repr((cache.provenance.logit_scale, cache.classnames)).encode())
    for array in (base, cache.labels[test]):
        digest.update(np.ascontiguousarray(array).data)
    for _, features in cache.pieces(test):
        digest.update(features.data)
    return digest.hexdigest()


def _digest(shared: str, *sets: TrainingSet | ValidationSet | None) -> str:
    """Return the SHA-256 by which equal inputs of a run are known: what all runs share, and its own images."""
    digest = sha256(shared.encode())
    for images in (one for one in sets if one is not None):
        features = images.directions if isinstance(images, TrainingSet) else images.image_features
        for array in (features, images.labels):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _metrics_of_intact_run(folder: Path) -> dict[str, Any]:
    """Return the metrics of a run folder, or nothing when there is no intact run."""
    try:
        read_classifier(folder)
        return read_metrics(folder)
    except RunError:
        return {}


def _measured(cache: FeatureCache, fitted: _Fitted, classifier: Classifier, device: torch.device) -> dict[str, Any]:
    """Return val accuracies in percent, what the fit went through, and how many images took part."""
    split, fit = cache.split(*fitted.name), fitted.fit
    vals = percent_correct(cache, split.val, [classifier.base, classifier.weights], device) or (None, None)
    tried = {"alpha_candidates": [asdict(one) for one in fitted.candidates]} if fitted.candidates else {}
    return {
        "zero_shot_val_accuracy": vals[0],
        "val_accuracy": vals[1],
        **tried,
        "epoch_losses": list(fit.losses),
        "kept_epochs": fit.kept_epochs,
        "device": str(device),
        "images": {"train": len(split.train), "val": len(split.val), "test": len(cache.rows("test"))},
    }


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
        "alpha": classifier.alpha,
        "epochs": recipe.epochs_for(classifier.shots),
        "cache": str(cache.path),
        "versions": {name: version(name) for name in ("taskres-cache", "torch", "numpy")},
    }
