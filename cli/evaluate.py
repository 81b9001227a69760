"""`taskres eval`: a fitted classifier on its own cache or on others, and zero-shot."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskres_cache.errors import OptionError

from . import completion
from .options import HALVES, CacheDir, Device, Json

if TYPE_CHECKING:
    from taskres_cache.runs.evaluation import Evaluation, ZeroShot


def evaluate(
    run: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="A run folder, or a folder above several; with --zero-shot a cache. After --on, more caches.",
            show_default=False,
            autocompletion=completion.runs_or_caches,
        ),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on",
            metavar="CACHE...",
            help="Caches to test on instead of the run's own.",
            autocompletion=completion.caches,
        ),
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="The text classifier of a cache alone, in the field's three forms.")
    ] = False,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="all, base (the first half) or new (the others).",
            show_default="what the run was fitted on",
            autocompletion=completion.one_of(*HALVES),
        ),
    ] = None,
    cache_dir: CacheDir = Path("cache"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure the test accuracy of a fitted classifier, on other caches of the same checkpoint too.

    Example: taskres eval runs/RN50-openai/imagenet --on imagenetv2 imagenet_a
    """
    if zero_shot:
        if on:
            raise OptionError("--zero-shot takes caches in the place of RUN: taskres eval CACHE --zero-shot")
        _evaluate_zero_shot(run, classes or "all", cache_dir, device, as_json)
        return
    path, *more = run  # `--on a b` reaches us as `--on a` and one more argument: click's options take one value each
    if more and not on:
        raise OptionError(
            f"one RUN at a time, got {' '.join(run)}; put the runs below one folder, or --on before caches"
        )
    _evaluate_runs(Path(path), [*(on or []), *more], classes, cache_dir, device, as_json)


def _evaluate_runs(
    path: Path, on: Sequence[str], classes: str | None, cache_dir: Path, device: str, as_json: bool
) -> None:
    from taskres_cache.caches.class_halves import open_cache
    from taskres_cache.caches.finding import find_cache
    from taskres_cache.reporting.tables import Table
    from taskres_cache.runs.evaluation import evaluate_run
    from taskres_cache.runs.run import checkpoint_folder, find_runs, own_cache, read_classifier
    from taskres_cache.system.devices import choose_device

    from .console import print_json, print_table

    target = choose_device(device)
    results = []
    for folder in find_runs(path):
        classifier = read_classifier(folder)
        checkpoint = checkpoint_folder(cache_dir, classifier.provenance).name
        caches = [(find_cache(name, cache_dir, checkpoint), classes or "all") for name in on]
        for cache, half in caches or [(own_cache(folder, classifier, cache_dir), classes or classifier.half)]:
            results.append((folder, evaluate_run(classifier, open_cache(cache, half), target)))
    if as_json:
        print_json([{"run": str(folder), **asdict(result)} for folder, result in results])
        return
    columns = ("run", "on", "images", "classes", "zero-shot %", "base %", "test %", "top-5 %", "ECE %")
    print_table(Table("accuracy on the test part", columns, tuple(_row(path, *found) for found in results), left=2))


def _row(above: Path, folder: Path, result: "Evaluation") -> tuple[str, ...]:
    """Return a line of the table; a run is named as seen from the folder that was asked for."""
    from taskres_cache.reporting.tables import percent

    named = folder.relative_to(above) if folder != above and folder.is_relative_to(above) else folder
    accuracies = (result.zero_shot_accuracy, result.base_accuracy, result.test_accuracy, result.top5_accuracy)
    shown = map(percent, (*accuracies, result.calibration_error))
    return (str(named), result.dataset, str(result.images), str(result.classes), *shown)


def _evaluate_zero_shot(caches: Sequence[str], classes: str, cache_dir: Path, device: str, as_json: bool) -> None:
    from taskres_cache.caches.class_halves import open_cache
    from taskres_cache.caches.finding import find_cache
    from taskres_cache.reporting.tables import Table
    from taskres_cache.runs.evaluation import evaluate_zero_shot
    from taskres_cache.system.devices import choose_device

    from .console import print_json, print_table

    target = choose_device(device)
    opened = [open_cache(find_cache(name, cache_dir), classes) for name in caches]
    results = [(cache, form) for cache in opened for form in evaluate_zero_shot(cache, target)]
    if as_json:
        print_json([{"cache": str(cache.path), "classes": cache.half, **asdict(form)} for cache, form in results])
        return
    columns = ("data set", "classifier", "prompts", "val %", "test %")
    rows = tuple((cache.provenance.dataset, *_zero_shot_row(form)) for cache, form in results)
    only = "" if classes == "all" else f", {classes} classes"
    print_table(Table(f"zero-shot accuracy{only}", columns, rows, left=2))


def _zero_shot_row(result: "ZeroShot") -> tuple[str, ...]:
    from taskres_cache.reporting.tables import percent

    accuracies = (percent(result.val_accuracy), percent(result.test_accuracy))
    return (result.form, str(len(result.templates)), *accuracies)
