"""Stage two: fit, measure and write one run per split and recipe of a cache."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import CacheError
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.search import count_candidates, search_residuals
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.stacking import stack_size
from taskres_cache.methods.task_residual.task import Fit, FitTask
from taskres_cache.recipe import Recipe
from taskres_cache.runs.classifier import ResidualClassifier
from taskres_cache.runs.evaluation import Digest, predictions_of
from taskres_cache.runs.finding import method_of_set, run_folder
from taskres_cache.runs.fitting.alpha_scale import with_fitting_alpha
from taskres_cache.runs.fitting.base_files import BaseFile
from taskres_cache.runs.fitting.inputs import (
    Bases,
    bases_of,
    inputs_digest,
    refuse_missing_views,
    study_digest,
    tasks_of_split,
)
from taskres_cache.runs.fitting.recording import (
    FittedSplit,
    accuracies_on_test,
    accuracies_on_val,
    base_head,
    classifier_of,
    history,
    identity,
    intact_run,
    path_from,
    place_run,
    recipe_fields,
    refuse_unusable,
    tested_images,
)
from taskres_cache.runs.metrics import Metrics, Seconds
from taskres_cache.runs.results import FitResults
from taskres_cache.runs.run import Run
from taskres_cache.runs.scores import Predictions
from taskres_cache.system.devices import choose_device


def recipe_of(cache: FeatureCache, **choices: Any) -> Recipe:
    """Return the recipe that a cache records for its data set, with some fields replaced.

    Parameters
    ----------
    cache : FeatureCache
        A cache with augmented views is fitted on all of them, unless `views` is given. Without text features, the base
        is "means" unless `base` is given. Data of one's own get an alpha that fits the size of their text features,
        unless `alpha` or `alpha_rule` is given, see `alpha_scale`.
    **choices : object
        Fields of `Recipe` to replace; None leaves a field as it is.

    Raises
    ------
    CacheError
        The recorded recipe has fields that this version does not know.
    OptionError
        A field has an invalid value.
    """
    try:
        recipe = Recipe(**cache.provenance.recipe)
    except TypeError as error:
        raise CacheError(f"{cache.path} has a recipe of a newer version ({error}); upgrade taskres-cache") from error
    given = {name: value for name, value in choices.items() if value is not None}
    base = {} if cache.has_text else {"base": "means"}
    chosen = recipe.changed(**{"views": cache.views, **base, **given})
    return chosen if {"alpha", "alpha_rule"} & set(given) else with_fitting_alpha(cache, chosen)


def fit(
    cache: FeatureCache | str | Path,
    splits: Sequence[SplitName] | None = None,
    recipes: Sequence[Recipe] | None = None,
    device: str | torch.device = "auto",
    out: str | Path = "runs",
    base_file: BaseFile | None = None,
) -> FitResults:
    """Fit task residuals on a cache: one run per split and recipe, measured on the test images.

    Parameters
    ----------
    cache : FeatureCache, str or Path
        The cache, or its file.
    splits : sequence of (int, int), optional
        Few-shot splits as (shots, seed). Defaults to every split of the cache.
    recipes : sequence of Recipe, optional
        How to train. Defaults to the recipe that the cache records, see `recipe_of`.
    device : str or torch.device, default "auto"
        "auto", "cpu", "cuda", "cuda:1" or "mps".
    out : str or Path, default "runs"
        Folder above the run folders. A run of the same inputs and recipe is replaced. One of other inputs is kept: the
        new run is written next to it, to `seed_S-<digits of inputs_sha256>`, and its `kept` names the other.
    base_file : BaseFile, optional
        Base for recipes with `base="file"`.

    Returns
    -------
    FitResults
        One `Run` per split and recipe, and `summaries` over seeds.

    Raises
    ------
    OptionError
        The cache does not have a split, augmented views or a text projection; raised before anything is fitted.
    CacheError
        The cache is damaged or has no test images; raised before anything is fitted.
    WeightsError
        The base file does not fit the cache.
    FitError
        A loss became NaN or infinite.
    StorageError
        A run folder could not be written.

    Notes
    -----
    A fit sees the training and validation images of its split and nothing else; test images are read once, after every
    choice is made. Source: Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023, section 4.1.

    Examples
    --------
    >>> from taskres_cache import Recipe, fit
    >>> results = fit("cache/glyph-clip-bundled/digits.h5", [(16, 1), (16, 2)], [Recipe(alpha=2.0)], device="cpu")
    >>> [round(run.metrics.test_accuracy, 2) for run in results]
    [98.05, 98.05]
    >>> results.summaries[0].seeds
    (1, 2)
    """
    opened = cache if isinstance(cache, FeatureCache) else FeatureCache(cache)
    target = device if isinstance(device, torch.device) else choose_device(device)
    chosen = list(opened.splits) if splits is None else splits
    used = [recipe_of(opened)] if recipes is None else recipes
    return FitResults(tuple(fit_each(opened, chosen, used, target, Path(out), base_file)))


def fit_each(
    cache: FeatureCache,
    splits: Sequence[SplitName],
    recipes: Sequence[Recipe],
    device: torch.device,
    out: Path,
    base_file: BaseFile | None = None,
) -> Iterator[Run]:
    """Yield the runs of `fit` one by one, as soon as they are written; parameters and errors are those of `fit`.

    As many splits are stacked as the device benefits from, see `stacking.stack_size`. When all fits of a stack are
    done, their classifiers are measured on the test images together, one piece of the cache at a time.
    """
    refuse_unusable(cache, splits)
    refuse_missing_views(cache, recipes)
    bases = bases_of(cache, recipes, device, base_file)
    fits_per_split = sum(count_candidates(recipe) for recipe in recipes)
    at_once = max(1, stack_size(prod(bases.shape), device) // fits_per_split)
    for first in range(0, len(splits), at_once):
        fitted = _fitted(cache, splits[first : first + at_once], recipes, bases, device)
        yield from _written(cache, fitted, bases, device, out)


def finished_runs(cache: FeatureCache, splits: Sequence[SplitName], recipe: Recipe, out: Path) -> dict[SplitName, Run]:
    """Return the runs of a study that exist: same recipe, and fitted and tested on exactly the same numbers.

    Parameters
    ----------
    cache : FeatureCache
        The cache that they must have been fitted on.
    splits : sequence of (int, int)
        Few-shot splits as (shots, seed).
    recipe : Recipe
        How they must have been trained.
    out : Path
        Folder above the run folders.

    Raises
    ------
    OptionError
        The cache does not have a split.
    """
    bases = bases_of(cache, [recipe], torch.device("cpu"))
    test, finished = sha256(), {}
    for _, features in cache.pieces(cache.rows("test")):
        test.update(features.data)
    study = study_digest(cache, bases.text_sha256, test.hexdigest())
    for name in splits:
        (task,) = tasks_of_split(cache, name, [recipe])
        inputs = inputs_digest(cache, bases.sources(recipe, name), task, test.hexdigest())
        method = method_of_set(recipe.method_name(), cache.prompts)
        folder = run_folder(out, cache.provenance, method, cache.half, *name)
        run = intact_run(folder, inputs, study, recipe)
        if run is not None:
            finished[name] = run
    return finished


def _fitted(
    cache: FeatureCache, names: Sequence[SplitName], recipes: Sequence[Recipe], bases: Bases, device: torch.device
) -> list[FittedSplit]:
    """Fit every recipe on every split."""
    named = [(name, task) for name in names for task in tasks_of_split(cache, name, recipes)]
    starts = bases.of_tasks([task for _, task in named], [name for name, _ in named])
    tasks = [FitTask(**vars(task), base=start.base) for (_, task), start in zip(named, starts, strict=True)]
    scale = cache.provenance.logit_scale
    plain = [task for task in tasks if not task.recipe.chooses and task.recipe.base != "enhanced-only"]
    choosing = [task for task in tasks if task.recipe.chooses]
    fits = {id(task): fit for task, fit in zip(plain, fit_residuals(plain, scale, device), strict=True)}
    searches = {id(task): one for task, one in zip(choosing, search_residuals(choosing, scale, device), strict=True)}
    fits |= {task: search.fit for task, search in searches.items()}
    return [
        FittedSplit(name, start, task, fits.get(id(task)) or _no_fit(task), searches.get(id(task)))
        for (name, _), start, task in zip(named, starts, tasks, strict=True)
    ]


def _no_fit(task: FitTask) -> Fit:
    """Return a residual of zero, which leaves the base as it is."""
    return Fit(np.zeros_like(task.base), None, task.recipe.alpha, (), 0, 0.0)


def _written(
    cache: FeatureCache, fitted: Sequence[FittedSplit], bases: Bases, device: torch.device, out: Path
) -> Iterator[Run]:
    """Measure all fits on the test images, which are read here and not before, and write one run after the other."""
    classifiers = [classifier_of(cache, one, device) for one in fitted]
    started, test = perf_counter(), sha256()
    zero_shot, pairs = _predictions_on_test(cache, bases.head, classifiers, device, test)
    seconds = (perf_counter() - started) / len(fitted)
    study = study_digest(cache, bases.text_sha256, test.hexdigest())
    for one, classifier, (base, adapted) in zip(fitted, classifiers, pairs, strict=True):
        folder = run_folder(out, cache.provenance, classifier.method, cache.half, *one.name)
        metrics = Metrics(
            **identity(cache, classifier),
            **recipe_fields(classifier),
            cache_from_run=path_from(folder, cache.path),
            inputs_sha256=inputs_digest(cache, bases.sources(classifier.recipe, one.name), one.task, test.hexdigest()),
            study_sha256=study,
            **accuracies_on_test(zero_shot, base, adapted, len(cache.classnames)),
            **accuracies_on_val(cache, classifier, bases.head, base_head(classifier), device),
            **history(one),
            base_file=bases.file_name if classifier.recipe.base == "file" else None,
            device=str(device),
            seconds=Seconds(one.start.seconds, one.fit.seconds, seconds),
        )
        yield replace(place_run(folder, classifier, metrics), tested=tested_images(zero_shot, adapted))


def _predictions_on_test(
    cache: FeatureCache,
    zero_shot: CosineHead | None,
    classifiers: Sequence[ResidualClassifier],
    device: torch.device,
    digest: Digest,
) -> tuple[Predictions | None, list[tuple[Predictions, Predictions]]]:
    """Return the predictions of zero-shot if there is text, and of each classifier's base and base + residual."""
    heads = [head for one in classifiers for head in (base_head(one), one.head)]
    before = [] if zero_shot is None else [zero_shot]
    predictions = predictions_of(cache, cache.rows("test"), [*before, *heads], device, digest)
    assert predictions is not None  # `refuse_unusable` refuses a cache without test images
    adapted = predictions[len(before) :]
    return predictions[0] if before else None, list(zip(adapted[::2], adapted[1::2], strict=True))
