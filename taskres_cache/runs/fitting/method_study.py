"""Fit, measure and write one run per split and method of a cache; `study` does the same for task residuals, faster."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets.sampling import shots_text
from taskres_cache.errors import FitError, TaskresError
from taskres_cache.heads.head import Head
from taskres_cache.methods.choice import MethodChoice
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.method import Adapted
from taskres_cache.methods.temperature import fit_temperature
from taskres_cache.runs.class_matching import text_head
from taskres_cache.runs.classifier import MethodClassifier
from taskres_cache.runs.evaluation import predictions_of
from taskres_cache.runs.finding import method_of_set, run_folder
from taskres_cache.runs.fitting.few_shot_tasks import TaskReader, refuse_unsuited, task_digest
from taskres_cache.runs.fitting.inputs import study_digest
from taskres_cache.runs.fitting.recording import (
    accuracies_on_test,
    accuracies_on_val,
    identity,
    intact_run,
    path_from,
    place_run,
    refuse_unusable,
    tested_images,
)
from taskres_cache.runs.metrics import Metrics, Seconds
from taskres_cache.runs.run import Run
from taskres_cache.system.threads import threads_for

KEPT_TRIALS = 50  # of a search, the best ones


@dataclass(frozen=True)
class FittedMethod:
    """A method fitted on a split.

    Parameters
    ----------
    name : (int, int)
        Shots and seed.
    choice : MethodChoice
        The method and its options.
    task : FewShotTask
        What it saw.
    adapted : Adapted
        What it returned.
    classifier : MethodClassifier
        The calibrated classifier.
    seconds : float
        Time of the fit.
    """

    name: SplitName
    choice: MethodChoice
    task: FewShotTask
    adapted: Adapted
    classifier: MethodClassifier
    seconds: float


def fit_methods(
    cache: FeatureCache,
    splits: Sequence[SplitName],
    choices: Sequence[MethodChoice],
    device: torch.device,
    out: Path,
) -> Iterator[Run]:
    """Yield one run per split and method, as soon as it is written.

    Parameters
    ----------
    cache : FeatureCache
        The cache.
    splits : sequence of (int, int)
        Few-shot splits as (shots, seed).
    choices : sequence of MethodChoice
        The methods and their options.
    device : torch.device
        Where to compute.
    out : Path
        Folder above the run folders, as in `study.fit`.

    Raises
    ------
    OptionError
        The cache does not have a split, or something that a method needs; raised before anything is fitted.
    CacheError
        The cache is damaged or has no test images; raised before anything is fitted.
    FitError
        A method failed, or its head has values that are not finite.
    StorageError
        A run folder could not be written.
    """
    refuse_unusable(cache, splits)
    refuse_unsuited(cache, choices)
    reader = TaskReader(cache, device)
    for name in splits:
        fitted = [fitted_method(reader, name, choice) for choice in choices]
        yield from _written(reader, fitted, device, out)
        reader.forget()


def finished_method_runs(
    cache: FeatureCache, splits: Sequence[SplitName], choice: MethodChoice, out: Path
) -> dict[SplitName, Run]:
    """Return the runs of a method that exist: same options, and fitted and tested on exactly the same numbers.

    Parameters and errors are those of `study.finished_runs`, with a method in place of a recipe.
    """
    reader, test, finished = TaskReader(cache, torch.device("cpu")), sha256(), {}
    for _, features in cache.pieces(cache.rows("test")):
        test.update(features.data)
    study = study_digest(cache, reader.text_sha256, test.hexdigest())
    for name in splits:
        inputs = task_digest(cache, reader.task(name, choice), test.hexdigest())
        method = method_of_set(choice.method_name(), cache.prompts)
        folder = run_folder(out, cache.provenance, method, cache.half, *name)
        run = intact_run(folder, inputs, study, choice.record())
        if run is not None:
            finished[name] = run
        reader.forget()
    return finished


def fitted_method(reader: TaskReader, name: SplitName, choice: MethodChoice) -> FittedMethod:
    """Fit a method on a split, and its temperature on the validation images; nothing is written.

    Parameters
    ----------
    reader : TaskReader
        Reads the split.
    name : (int, int)
        Shots and seed.
    choice : MethodChoice
        The method and its options.

    Raises
    ------
    FitError
        The method failed, or its head has values that are not finite.
    """
    task = reader.task(name, choice)
    started = perf_counter()
    count, dim = task.train.image_features.shape
    with threads_for(4 * count * dim * task.classes):  # two products of all images and all classes
        adapted = _adapted(task, choice)
    seconds = perf_counter() - started
    _refuse_infinite(adapted, choice, name)
    cache = reader.cache
    classifier = MethodClassifier(
        fitted=adapted.head,
        record=choice.record(),
        method=method_of_set(choice.method_name(), cache.prompts),
        classnames=cache.classnames,
        templates=cache.used_templates,
        prompts=cache.prompts,
        shots=name[0],
        seed=name[1],
        provenance=cache.provenance,
        class_ids=cache.class_ids,
        half=cache.half,
    )
    return FittedMethod(name, choice, task, adapted, _calibrated(classifier, task), seconds)


def _adapted(task: FewShotTask, choice: MethodChoice) -> Adapted:
    """Return the result of a method; whatever a user's own method raises becomes one line."""
    if not choice.source_sha256:
        return choice.method.fit(task, choice.options)
    try:
        adapted = choice.method.fit(task, choice.options)
    except TaskresError:
        raise
    except Exception as error:
        raise FitError(f"method {choice.method.name} failed ({type(error).__name__}: {error}); fix its file") from error
    if not isinstance(adapted, Adapted) or not isinstance(adapted.head, Head):
        raise FitError(f"method {choice.method.name} returned {type(adapted).__name__}, expected Adapted with a Head")
    return adapted


def _calibrated(classifier: MethodClassifier, task: FewShotTask) -> MethodClassifier:
    """Return the classifier with its temperature fitted on the validation images, if there are any."""
    if task.val is None:
        return classifier
    head = classifier.head
    inputs = task.val.image_features if head.input == "features" else task.val.pre_projection
    logits = head.logits(torch.from_numpy(inputs))
    return classifier.calibrated(fit_temperature(logits, torch.from_numpy(task.val.labels)))


def _refuse_infinite(adapted: Adapted, choice: MethodChoice, name: SplitName) -> None:
    """Raise FitError for a head with values that are not finite."""
    for tensor, values in adapted.head.tensors().items():
        if not np.isfinite(values).all():
            raise FitError(
                f"method {choice.method.name} with {shots_text(name[0])} shots and seed {name[1]}: {tensor} has values "
                "that are not finite; lower its learning rate"
            )


def _written(reader: TaskReader, fitted: Sequence[FittedMethod], device: torch.device, out: Path) -> Iterator[Run]:
    """Measure all methods of a split on the test images, which are read here and not before, and write the runs."""
    cache, started, test = reader.cache, perf_counter(), sha256()
    zero_shot = text_head(cache)
    before = [] if zero_shot is None else [zero_shot]
    heads = [*before, *(one.classifier.head for one in fitted)]
    predictions = predictions_of(cache, cache.rows("test"), heads, device, test)
    assert predictions is not None  # `refuse_unusable` refuses a cache without test images
    seconds = (perf_counter() - started) / len(fitted)
    study = study_digest(cache, reader.text_sha256, test.hexdigest())
    of_text = predictions[0] if before else None
    for one, adapted in zip(fitted, predictions[len(before) :], strict=True):
        folder = run_folder(out, cache.provenance, one.classifier.method, cache.half, *one.name)
        metrics = Metrics(
            **identity(cache, one.classifier),
            record=one.choice.record(),
            cache_from_run=path_from(folder, cache.path),
            inputs_sha256=task_digest(cache, one.task, test.hexdigest()),
            study_sha256=study,
            **accuracies_on_test(of_text, of_text, adapted, len(cache.classnames)),
            **accuracies_on_val(cache, one.classifier, zero_shot, zero_shot, device),
            settings=one.adapted.chosen,
            trials=tuple(sorted(one.adapted.trials, key=lambda trial: trial.rank, reverse=True)[:KEPT_TRIALS]),
            epoch_losses=one.adapted.losses,
            device=str(device),
            seconds=Seconds(None, one.seconds, seconds),
        )
        yield replace(place_run(folder, one.classifier, metrics), tested=tested_images(of_text, adapted))
