"""`taskres eval`: a fitted classifier on its own cache or on others."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskres_cache.errors import OptionError

from .options import CacheDir, Device, Json

if TYPE_CHECKING:
    from taskres_cache.evaluation import Evaluation


def evaluate(
    run: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="A run folder, or a folder above several.  [after --on: more caches]",
            show_default=False,
        ),
    ],
    on: Annotated[
        list[str] | None, typer.Option("--on", metavar="CACHE...", help="Caches to test on instead of the run's own.")
    ] = None,
    cache_dir: CacheDir = Path("cache"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure the test accuracy of a fitted classifier, on other caches of the same checkpoint too.

    Example: taskres eval runs/glyph-clip-bundled/digits --on other-digits
    """
    from taskres_cache.devices import choose_device
    from taskres_cache.evaluation import evaluate_run
    from taskres_cache.runs import find_runs, own_cache, read_classifier
    from taskres_cache.store import FeatureCache, find_cache

    from .console import print_json, print_table

    path, *more = run  # `--on a b` reaches us as `--on a` and one more argument: click's options take one value each
    if more and not on:
        raise OptionError(
            f"one RUN at a time, got {' '.join(run)}; put the runs below one folder, or --on before caches"
        )
    caches = [find_cache(name, cache_dir) for name in [*(on or []), *more]]
    results = []
    for folder in find_runs(Path(path)):
        classifier = read_classifier(folder)
        for cache in caches or [own_cache(folder, classifier, cache_dir)]:
            results.append((folder, evaluate_run(classifier, FeatureCache(cache), choose_device(device))))
    if as_json:
        print_json([{"run": str(folder), **asdict(result)} for folder, result in results])
        return
    columns = ["run", "on", "images", "classes", "zero-shot %", "test %"]
    print_table("accuracy on the test part", columns, [_row(Path(path), *result) for result in results], left=2)


def _row(above: Path, folder: Path, result: "Evaluation") -> list[str]:
    """Return a line of the table; a run is named as seen from the folder that was asked for."""
    from .console import percent

    named = folder.relative_to(above) if folder != above and folder.is_relative_to(above) else folder
    accuracies = [percent(result.zero_shot_accuracy), percent(result.test_accuracy)]
    return [str(named), result.dataset, str(result.images), str(result.classes), *accuracies]
