"""`taskres eval`: the accuracy of runs on their own or other caches, and of zero-shot classifiers."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskres_cache.errors import OptionError, RunError, UnknownNameError

from . import checks, completion
from .options import DEFAULT_CACHE_DIR, HALVES, CacheDir, Device, Json

if TYPE_CHECKING:
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.reporting.tables import Table
    from taskres_cache.runs.classifier import Classifier
    from taskres_cache.runs.evaluation import Evaluation, ZeroShot

    # A run's folder, its classifier, its result on one cache, and what the cache leaves out
    Tested = tuple[Path, Classifier, Evaluation, dict[str, Any]]


def evaluate(
    run: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="A run folder, or a folder that contains several runs; with --zero-shot, caches.",
            show_default=False,
            autocompletion=completion.runs_or_caches,
        ),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on",
            metavar="CACHE...",
            help="Caches to test on, instead of the run's own cache.",
            autocompletion=completion.caches,
        ),
    ] = None,
    zero_shot: Annotated[
        bool,
        typer.Option(
            "--zero-shot", help="Test the text classifiers of caches: single prompt, prompt ensemble, residual base."
        ),
    ] = False,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            callback=checks.one_of(*HALVES),
            help="Classes: all, base (first half) or new (second half).",
            show_default="those of the run",
            autocompletion=completion.one_of(*HALVES),
        ),
    ] = None,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a run's test accuracy, on its own or other caches.

    The other caches must have features of the same checkpoint. A run without a residual per class (--residual image,
    --base enhanced-only) is also measured on classes that it was not fitted on.

    Example: taskres eval runs/RN50-openai/imagenet --on imagenetv2 imagenet_a
    """
    if zero_shot:
        if on:
            raise OptionError("--zero-shot takes caches instead of RUN and --on: taskres eval CACHE --zero-shot")
        _evaluate_zero_shot(run, classes or "all", cache_dir, device, as_json)
        return
    path, *more = run  # `--on a b` arrives as `--on a` and one more argument: click's options take one value each
    if more and not on:
        raise OptionError(
            f"expected one RUN, got {' '.join(run)}; pass a folder that contains the runs, or put --on before caches"
        )
    _evaluate_runs(Path(path), [*(on or []), *more], classes, cache_dir, device, as_json)


def _refuse_missing_caches(names: Sequence[str], cache_dir: Path) -> None:
    """Raise an error for a cache that does not exist or is invalid; which of several is meant depends on the run."""
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.caches.finding import find_cache

    for name in names:
        try:
            FeatureCache(find_cache(name, cache_dir))
        except UnknownNameError:
            raise
        except OptionError:  # cached for several checkpoints
            continue


def _test_caches(
    folder: Path, classifier: "Classifier", on: Sequence[str], classes: str | None, cache_dir: Path
) -> "list[FeatureCache]":
    """Return the caches to measure a run on: those of --on, else its own."""
    from taskres_cache.caches.class_halves import open_cache
    from taskres_cache.caches.finding import find_cache
    from taskres_cache.runs.finding import checkpoint_folder
    from taskres_cache.runs.run import own_cache

    if not on:
        return [open_cache(own_cache(folder, classifier, cache_dir), classes or classifier.half)]
    checkpoint = checkpoint_folder(cache_dir, classifier.provenance).name
    return [open_cache(find_cache(name, cache_dir, checkpoint), classes or "all") for name in on]


def _evaluate_runs(
    path: Path, on: Sequence[str], classes: str | None, cache_dir: Path, device: str, as_json: bool
) -> None:
    from taskres_cache.runs.finding import find_runs

    folders = find_runs(path)
    _refuse_missing_caches(on, cache_dir)

    from taskres_cache.reporting.notes import test_notes
    from taskres_cache.runs.class_matching import UnknownClassesError
    from taskres_cache.runs.evaluation import evaluate_run
    from taskres_cache.runs.run import read_classifier
    from taskres_cache.system.devices import choose_device

    from .console import print_json, print_table, say
    from .notes import left_out_of

    target = choose_device(device)
    results: list[Tested] = []
    notes: list[str] = []
    refused: list[RunError] = []
    for folder in folders:
        classifier = read_classifier(folder)
        for opened in _test_caches(folder, classifier, on, classes, cache_dir):
            try:
                results.append((folder, classifier, evaluate_run(classifier, opened, target), left_out_of(opened)))
                notes += test_notes(opened)
            except UnknownClassesError as error:  # a run of other inputs than the cache now has
                refused.append(error)
                notes.append(f"{folder} is left out: {error}")
    if refused and not results:
        raise refused[0]
    for note in dict.fromkeys(notes):
        say(f"note: {note}")
    if as_json:
        print_json([{"run": str(folder), **asdict(result), **left_out} for folder, _, result, left_out in results])
        return
    for table in _tables(results):
        print_table(table)


def _tables(results: "Sequence[Tested]") -> "list[Table]":
    """Return a table per method and set of inputs, with the path of its folder on the title's first line."""
    from taskres_cache.reporting.tables import Table

    columns = ("test data", "shots", "seed", "zero-shot %", "base %", "test %", "top-5 %", "ECE %")
    by_method: dict[tuple[Path, str], list[Tested]] = {}
    for tested, variant in zip(results, _variants([folder for folder, *_ in results]), strict=True):
        by_method.setdefault((_method_folder(*tested[:2]), variant), []).append(tested)
    tables = []
    for (folder, variant), runs in by_method.items():
        sizes = [f"{result.dataset} ({result.images} images, {result.classes} classes)" for _, _, result, _ in runs]
        title = f"{folder}{variant and f', {variant}'}\ntest data: {', '.join(dict.fromkeys(sizes))}"
        halves = ("base half %", "harmonic mean") if any(one.harmonic_mean is not None for _, _, one, _ in runs) else ()
        rows = tuple(_row(classifier, result)[: len(columns + halves)] for _, classifier, result, _ in runs)
        tables.append(Table(title, columns + halves, rows))
    return tables


def _variants(folders: Sequence[Path]) -> list[str]:
    """Return for each run what sets its inputs apart from those of runs of the same name; empty if all are alike."""
    from taskres_cache.reporting.studies import study_key, variants_of
    from taskres_cache.runs.run import Run, read_metrics

    runs: dict[Path, Run] = {}
    for folder in folders:
        with suppress(RunError):  # a classifier without metrics can be evaluated
            runs[folder] = Run(folder, read_metrics(folder))
    first: dict[tuple[str, ...], Run] = {}
    for run in runs.values():
        first.setdefault(study_key(run.metrics), run)
    variants = dict(zip(first, variants_of(list(first.values())), strict=True))
    return [variants[study_key(runs[folder].metrics)] if folder in runs else "" for folder in folders]


def _method_folder(folder: Path, classifier: "Classifier") -> Path:
    """Return the folder of all shots and seeds of a run's method; the run's own folder if it was moved."""
    from taskres_cache.datasets import shots_text

    below = (f"shots_{shots_text(classifier.shots)}", f"seed_{classifier.seed}")
    return folder.parents[1] if (*folder.parts[-2:-1], folder.name.partition("-")[0]) == below else folder


def _row(classifier: "Classifier", result: "Evaluation") -> tuple[str, ...]:
    from taskres_cache.datasets import shots_text
    from taskres_cache.reporting.tables import percent

    accuracies = (result.zero_shot_accuracy, result.base_accuracy, result.test_accuracy, result.top5_accuracy)
    halves = (result.base_half_accuracy, result.harmonic_mean)
    numbers = map(percent, (*accuracies, result.calibration_error, *halves))
    return (result.dataset, shots_text(classifier.shots), str(classifier.seed), *numbers)


def _evaluate_zero_shot(caches: Sequence[str], classes: str, cache_dir: Path, device: str, as_json: bool) -> None:
    from taskres_cache.caches.class_halves import open_cache
    from taskres_cache.caches.finding import find_cache

    opened = [open_cache(find_cache(name, cache_dir), classes) for name in caches]

    from taskres_cache.reporting.notes import test_notes
    from taskres_cache.reporting.tables import Table
    from taskres_cache.runs.evaluation import evaluate_zero_shot
    from taskres_cache.system.devices import choose_device

    from .console import print_json, print_table, say
    from .notes import left_out_of

    target = choose_device(device)
    results = [(cache, form) for cache in opened for form in evaluate_zero_shot(cache, target)]
    for note in dict.fromkeys(note for cache in opened for note in test_notes(cache)):
        say(f"note: {note}")
    if as_json:
        print_json(
            [
                {"cache": str(cache.path), "classes": cache.half, **asdict(form), **left_out_of(cache)}
                for cache, form in results
            ]
        )
        return
    columns = ("data set", "classifier", "prompts", "val %", "test %")
    rows = tuple((cache.provenance.dataset, *_zero_shot_row(form)) for cache, form in results)
    only = "" if classes == "all" else f", {classes} classes"
    print_table(Table(f"zero-shot accuracy{only}", columns, rows, left=2))


def _zero_shot_row(result: "ZeroShot") -> tuple[str, ...]:
    from taskres_cache.reporting.tables import percent

    accuracies = (percent(result.val_accuracy), percent(result.test_accuracy))
    per_class = f"{result.prompts_per_class:.1f}".removesuffix(".0")
    return (result.form, per_class, *accuracies)
