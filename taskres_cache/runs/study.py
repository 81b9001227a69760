"""Stage two: fit, measure and write a run for every split and recipe of a cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import CacheError, RunError
from taskres_cache.heads import Head
from taskres_cache.methods.search import SearchedFit, candidates_of, search_residuals
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.stacking import stack_size
from taskres_cache.methods.task_residual.task import Fit, FitTask, Task
from taskres_cache.methods.temperature import fit_temperature
from taskres_cache.recipe import Recipe
from taskres_cache.runs.base_files import BaseFile
from taskres_cache.runs.bases import Bases, Start
from taskres_cache.runs.evaluation import predictions_of
from taskres_cache.runs.finding import run_folder
from taskres_cache.runs.measuring import accuracies_on_test, accuracies_on_val, history, identity, image_counts
from taskres_cache.runs.metrics import Metrics, Seconds
from taskres_cache.runs.results import FitResults
from taskres_cache.runs.run import Classifier, Run, read_classifier, read_metrics, write_run
from taskres_cache.runs.tasks import refuse_missing_views, tasks_of_split
from taskres_cache.system.devices import choose_device


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


def fit(
    cache: FeatureCache | str | Path,
    splits: Sequence[SplitName] | None = None,
    recipes: Sequence[Recipe] | None = None,
    device: str | torch.device = "auto",
    out: str | Path = "runs",
    base_file: BaseFile | None = None,
) -> FitResults:
    """Fit task residuals on a cache: one run for every split and recipe, measured on the test images.

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
        Folder above the run folders. A run of the same name is replaced.
    base_file : BaseFile, optional
        The base, for recipes with `base="file"`.

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
        A run folder cannot be written.

    Notes
    -----
    A fit is handed the training and validation images of its split and nothing else; test images are read once, after
    every choice is made. Source: Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023, section 4.1.

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
    asked = [recipe_of(opened)] if recipes is None else recipes
    return FitResults(tuple(fit_each(opened, chosen, asked, target, Path(out), base_file)))


def fit_each(
    cache: FeatureCache,
    splits: Sequence[SplitName],
    recipes: Sequence[Recipe],
    device: torch.device,
    out: Path,
    base_file: BaseFile | None = None,
) -> Iterator[Run]:
    """Yield the runs of `fit` one by one, as they are written.

    As many splits are stacked as the device gains from (see `loop.stack_size`). When all fits of a stack are done,
    their classifiers are measured on the test images together, one piece of the cache at a time.
    """
    for name in splits:
        cache.split(*name)
    refuse_missing_views(cache, recipes)
    if len(cache.rows("test")) == 0:
        raise CacheError(
            f"{cache.path} has no test image to measure a fit on; fix the images that could not be read, or add some, "
            "and run the command that made the cache again"
        )
    bases = Bases(cache.text_bases(), recipes, base_file, cache.provenance.logit_scale, device)
    fits_per_split = sum(len(candidates_of(recipe, bases.regular)) for recipe in recipes)
    at_once = max(1, stack_size(bases.regular.size, device) // fits_per_split)
    for start in range(0, len(splits), at_once):
        fitted = _fitted(cache, splits[start : start + at_once], recipes, bases, device)
        yield from _written(cache, fitted, bases, device, out)


def finished_runs(cache: FeatureCache, splits: Sequence[SplitName], recipe: Recipe, out: Path) -> dict[SplitName, Run]:
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
        (task,) = tasks_of_split(cache, name, [recipe])
        inputs = _inputs_digest(cache, bases.sources(recipe), task, test.hexdigest())
        if metrics is not None and metrics.inputs_sha256 == inputs and metrics.recipe == recipe:
            found[name] = Run(folder, metrics)
    return found


@dataclass(frozen=True)
class _Fitted:
    """What a residual of a split starts from, its task and fit, and what it was chosen from, if there was a choice."""

    name: SplitName
    start: Start
    task: FitTask
    fit: Fit
    chosen: SearchedFit | None = None


def _fitted(
    cache: FeatureCache, names: Sequence[SplitName], recipes: Sequence[Recipe], bases: Bases, device: torch.device
) -> list[_Fitted]:
    """Return every recipe fitted on every split, in their order."""
    named = [(name, task) for name in names for task in tasks_of_split(cache, name, recipes)]
    starts = bases.starts([task for _, task in named])
    tasks = [FitTask(**vars(task), base=start.base) for (_, task), start in zip(named, starts, strict=True)]
    scale = cache.provenance.logit_scale
    plain = [task for task in tasks if not task.recipe.chooses and task.recipe.base != "enhanced-only"]
    choosing = [task for task in tasks if task.recipe.chooses]
    fits = {id(task): fit for task, fit in zip(plain, fit_residuals(plain, scale, device), strict=True)}
    chosen = {id(task): one for task, one in zip(choosing, search_residuals(choosing, scale, device), strict=True)}
    fits |= {number: one.fit for number, one in chosen.items()}
    return [
        _Fitted(name, start, task, fits.get(id(task)) or _no_fit(task), chosen.get(id(task)))
        for (name, _), start, task in zip(named, starts, tasks, strict=True)
    ]


def _no_fit(task: FitTask) -> Fit:
    """Return a residual of zero: the base alone."""
    return Fit(np.zeros_like(task.base), None, task.recipe.alpha, (), 0, 0.0)


def _written(
    cache: FeatureCache, fitted: Sequence[_Fitted], bases: Bases, device: torch.device, out: Path
) -> Iterator[Run]:
    """Measure all classifiers on the test images, which are read here and nowhere before, and write them one by one."""
    classifiers = [_classifier(cache, one) for one in fitted]
    bases_of = [Head.of_arrays(one.base, cache.provenance.logit_scale) for one in classifiers]
    own = [head for pair in zip(bases_of, (one.head for one in classifiers), strict=True) for head in pair]
    started, test = perf_counter(), sha256()
    predicted = predictions_of(cache, cache.rows("test"), [bases.head, *own], device, test)
    evaluation = (perf_counter() - started) / len(fitted)
    assert predicted is not None  # `fit_each` refuses a cache without test images
    zero_shot, *of_own = predicted
    pairs = zip(of_own[::2], of_own[1::2], strict=True)
    for one, classifier, (base, adapted) in zip(fitted, classifiers, pairs, strict=True):
        inputs = _inputs_digest(cache, bases.sources(one.task.recipe), one.task, test.hexdigest())
        metrics = Metrics(
            **identity(cache, classifier),
            inputs_sha256=inputs,
            **accuracies_on_test(zero_shot, base, adapted, len(cache.classnames)),
            **accuracies_on_val(cache, classifier, bases.head, device),
            **history(one.start, one.fit, one.chosen),
            base_file=bases.file_name if classifier.recipe.base == "file" else None,
            device=str(device),
            images=image_counts(cache, one.name),
            seconds=Seconds(one.start.seconds, one.fit.seconds, evaluation),
        )
        folder = run_folder(out, cache.provenance, classifier.recipe, cache.half, *one.name)
        write_run(folder, classifier, metrics)
        yield Run(folder, metrics)


def _classifier(cache: FeatureCache, fitted: _Fitted) -> Classifier:
    """Return the classifier of a fit, with its temperature fitted on the validation images."""
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
    validation = fitted.task.validation
    if validation is None:
        return plain
    logits = plain.head.logits(torch.from_numpy(validation.image_features))
    return replace(plain, temperature=fit_temperature(logits, torch.from_numpy(validation.labels).long()))


def _inputs_digest(cache: FeatureCache, sources: Sequence[np.ndarray], task: Task, test_features: str) -> str:
    """Return the SHA-256 by which equal inputs of a run are known: text, train, val and test, in numbers and labels."""
    digest = sha256(repr((cache.provenance.logit_scale, cache.classnames, test_features)).encode())
    training, val = task.training, task.validation
    of_val = () if val is None else (val.image_features, val.labels)
    images = (training.directions, training.lengths, training.labels, *of_val, cache.labels[cache.rows("test")])
    for array in (*sources, *images):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _metrics_of_intact_run(folder: Path) -> Metrics | None:
    """Return the metrics of a run folder, or None if it holds no intact run."""
    try:
        read_classifier(folder)
        return read_metrics(folder)
    except RunError:
        return None
