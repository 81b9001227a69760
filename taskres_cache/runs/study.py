"""A study: one fit for every shot count, seed and recipe of a cache, each left as a run folder."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import CacheError, OptionError, RunError
from taskres_cache.heads import logits, moved
from taskres_cache.methods.search import Chosen, candidates_of, fit_by_choice
from taskres_cache.methods.task_residual.loop import Fit, FitTask, Task, fit_residuals, stack_size
from taskres_cache.methods.training_data import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe
from taskres_cache.runs.base_files import BaseFile
from taskres_cache.runs.bases import Bases, Start
from taskres_cache.runs.calibration import fit_temperature
from taskres_cache.runs.evaluation import calibration_errors, percent_correct, predictions_of
from taskres_cache.runs.measures import Predictions, class_accuracies
from taskres_cache.runs.run import Classifier, Head, read_classifier, read_metrics, run_folder, write_run


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
    cache: FeatureCache,
    splits: Sequence[SplitName],
    recipes: Sequence[Recipe],
    device: torch.device,
    out: Path,
    base_file: BaseFile | None = None,
) -> Iterator[RunResult]:
    """Fit, evaluate and write a run for every split and recipe.

    As many splits go together as the device gains by (see `fitting.stack_size`); when all of them are fitted and every
    choice is made, their classifiers meet the test features together, a piece at a time. A fit is handed the train and
    val rows of its split and nothing else.

    Parameters
    ----------
    cache, splits, recipes, device : what to fit, how, and where.
    out : above the run folders.
    base_file : for recipes whose base is from a file.

    Raises
    ------
    OptionError : a split, views or a text projection that the cache does not hold, before anything is fitted.
    CacheError : the cache has no test image, likewise.
    WeightsError : a base file of another shape.
    StorageError : a run folder cannot be written.
    """
    for name in splits:
        cache.split(*name)
    _refuse_missing_views(cache, recipes)
    if len(cache.rows("test")) == 0:
        raise CacheError(
            f"{cache.path} has no test image to measure a fit on; mend the images that could not be read, or add some, "
            "and run the command that made the cache again"
        )
    bases = Bases(cache.text_bases(), recipes, base_file, cache.provenance.logit_scale, device)
    fits_a_split = sum(len(candidates_of(recipe, bases.regular)) for recipe in recipes)
    at_once = max(1, stack_size(bases.regular.size, device) // fits_a_split)
    for start in range(0, len(splits), at_once):
        fitted = _fitted(cache, splits[start : start + at_once], recipes, bases, device)
        yield from _written(cache, fitted, bases, device, out)


def finished_runs(
    cache: FeatureCache, splits: Sequence[SplitName], recipe: Recipe, out: Path
) -> dict[SplitName, RunResult]:
    """Return those runs of a study that are there already: same recipe, and fitted and tested on the very same numbers.

    Raises OptionError for a split that the cache does not hold.
    """
    bases = Bases(cache.text_bases(), [recipe], None, cache.provenance.logit_scale, torch.device("cpu"))
    test, found = sha256(), {}
    for _, features in cache.pieces(cache.rows("test")):
        test.update(features.data)
    for name in splits:
        folder = run_folder(out, cache.provenance, recipe, cache.half, *name)
        metrics = _metrics_of_intact_run(folder)
        training, validation = _training_set(cache, name, recipe.views, recipe.view_use), _validation_set(cache, name)
        inputs = _inputs_digest(cache, bases.sources(recipe), training, validation, test.hexdigest())
        if metrics.get("inputs_sha256") == inputs and metrics.get("recipe") == recipe.as_dict():
            found[name] = RunResult(folder, metrics)
    return found


@dataclass(frozen=True)
class _Fitted:
    """What a residual of a split starts from, its task and fit, and what it was chosen from, if there was a choice."""

    name: SplitName
    start: Start
    task: FitTask
    fit: Fit
    chosen: Chosen | None = None


def _fitted(
    cache: FeatureCache, names: Sequence[SplitName], recipes: Sequence[Recipe], bases: Bases, device: torch.device
) -> list[_Fitted]:
    """Return every recipe fitted on every split, in their order."""
    named = [(name, task) for name in names for task in _tasks(cache, name, recipes)]
    starts = bases.starts([task for _, task in named])
    tasks = [FitTask(**vars(task), base=start.base) for (_, task), start in zip(named, starts, strict=True)]
    scale = cache.provenance.logit_scale
    plain = [task for task in tasks if not task.recipe.chooses and task.recipe.base != "enhanced-only"]
    choosing = [task for task in tasks if task.recipe.chooses]
    fits = {id(task): fit for task, fit in zip(plain, fit_residuals(plain, scale, device), strict=True)}
    chosen = {id(task): one for task, one in zip(choosing, fit_by_choice(choosing, scale, device), strict=True)}
    fits |= {number: one.fit for number, one in chosen.items()}
    return [
        _Fitted(name, start, task, fits.get(id(task)) or _no_fit(task), chosen.get(id(task)))
        for (name, _), start, task in zip(named, starts, tasks, strict=True)
    ]


def _tasks(cache: FeatureCache, name: SplitName, recipes: Sequence[Recipe]) -> list[Task]:
    """Return a task for each recipe on one split; recipes that use the same views share a training set."""
    uses = dict.fromkeys((recipe.views, recipe.view_use) for recipe in recipes)
    trainings = {use: _training_set(cache, name, *use) for use in uses}
    validation = _validation_set(cache, name)
    return [
        Task(trainings[recipe.views, recipe.view_use], recipe, recipe.epochs_for(name[0]), name[1], validation)
        for recipe in recipes
    ]


def _no_fit(task: FitTask) -> Fit:
    """Return a residual of zero: the base alone."""
    return Fit(np.zeros_like(task.base), None, task.recipe.alpha, (), 0, 0.0)


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


def _written(
    cache: FeatureCache, fitted: Sequence[_Fitted], bases: Bases, device: torch.device, out: Path
) -> Iterator[RunResult]:
    """Measure all classifiers on the test images, which are read here and nowhere before, and write them one by one."""
    classifiers = [_classifier(cache, one) for one in fitted]
    own = [head for one in classifiers for head in (Head(one.base), one.head)]
    started, test = perf_counter(), sha256()
    said = predictions_of(cache, cache.rows("test"), [Head(bases.regular), *own], device, test)
    evaluation = (perf_counter() - started) / len(fitted)
    assert said is not None  # `run_study` refuses a cache without test images
    zero_shot, *of_own = said
    pairs = zip(of_own[::2], of_own[1::2], strict=True)
    for one, classifier, (base, test_said) in zip(fitted, classifiers, pairs, strict=True):
        sources, recipe = bases.sources(one.task.recipe), classifier.recipe
        metrics = {
            **_identity(cache, classifier),
            "inputs_sha256": _inputs_digest(cache, sources, one.task.training, one.task.validation, test.hexdigest()),
            **_measured_on_test(zero_shot, base, test_said, len(cache.classnames)),
            **_measured_on_val(cache, one, classifier, bases, device),
            **_course(one, bases),
            "device": str(device),
            "images": _image_counts(cache, one.name),
            "seconds": {"base": one.start.seconds, "fit": one.fit.seconds, "evaluate": evaluation},
        }
        folder = run_folder(out, cache.provenance, recipe, cache.half, *one.name)
        write_run(folder, classifier, metrics)
        yield RunResult(folder, metrics)


def _classifier(cache: FeatureCache, fitted: _Fitted) -> Classifier:
    """Return a fit as a classifier that knows where its features came from, its temperature fitted on val."""
    plain = Classifier(
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
    return replace(plain, temperature=_temperature(plain, fitted.task.validation))


def _temperature(classifier: Classifier, validation: ValidationSet | None) -> float:
    if validation is None:
        return 1.0
    head = classifier.head
    weights, features = torch.from_numpy(head.weights), torch.from_numpy(validation.image_features)
    shift = None if head.image_shift is None else torch.from_numpy(head.image_shift)
    val_logits = logits(moved(features, shift), weights, classifier.provenance.logit_scale)
    return fit_temperature(val_logits, torch.from_numpy(validation.labels).long())


def _inputs_digest(
    cache: FeatureCache,
    sources: Sequence[np.ndarray],
    training: TrainingSet,
    validation: ValidationSet | None,
    test_features: str,
) -> str:
    """Return the SHA-256 by which equal inputs of a run are known: text, train, val and test, in numbers and labels."""
    digest = sha256(repr((cache.provenance.logit_scale, cache.classnames, test_features)).encode())
    val = () if validation is None else (validation.image_features, validation.labels)
    images = (training.directions, training.lengths, training.labels, *val, cache.labels[cache.rows("test")])
    for array in (*sources, *images):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _metrics_of_intact_run(folder: Path) -> dict[str, Any]:
    """Return the metrics of a run folder, or nothing when there is no intact run."""
    try:
        read_classifier(folder)
        return read_metrics(folder)
    except RunError:
        return {}


def _measured_on_test(zero_shot: Predictions, base: Predictions, said: Predictions, classes: int) -> dict[str, Any]:
    """Return what zero-shot, base, and base + residual come to on the test images, in percent."""
    error, untempered = calibration_errors(said)
    return {
        "zero_shot_accuracy": zero_shot.accuracy,
        "base_accuracy": base.accuracy,
        "test_accuracy": said.accuracy,
        "top5_accuracy": said.top5_accuracy,
        "calibration_error": error,
        "untempered_calibration_error": untempered,
        "zero_shot_class_accuracies": class_accuracies(zero_shot, classes),
        "class_accuracies": class_accuracies(said, classes),
    }


def _measured_on_val(
    cache: FeatureCache, fitted: _Fitted, classifier: Classifier, bases: Bases, device: torch.device
) -> dict[str, Any]:
    """Return val accuracies in percent."""
    heads = [Head(bases.regular), Head(classifier.base), classifier.head]
    names = ("zero_shot_val_accuracy", "base_val_accuracy", "val_accuracy")
    accuracies = percent_correct(cache, cache.split(*fitted.name).val, heads, device)
    return dict(zip(names, accuracies or repeat(None), strict=False)) | {"temperature": classifier.temperature}


def _course(fitted: _Fitted, bases: Bases) -> dict[str, Any]:
    """Return what base and fit went through, and what was chosen from what."""
    start, chosen = fitted.start, fitted.chosen
    tuning = {"epoch_losses": list(start.losses), "kept_epochs": start.kept_epochs}
    made: dict[str, Any] = {"base_tuning": tuning} if start.losses else {}
    made |= {"base_file": bases.file_name} if fitted.task.recipe.base == "file" else {}
    if chosen is not None:
        made |= {"chosen": asdict(chosen.choice), "candidates": [asdict(one) for one in chosen.candidates]}
    return {**made, "epoch_losses": list(fitted.fit.losses), "kept_epochs": fitted.fit.kept_epochs}


def _image_counts(cache: FeatureCache, name: SplitName) -> dict[str, int]:
    split = cache.split(*name)
    return {"train": len(split.train), "val": len(split.val), "test": len(cache.rows("test"))}


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
