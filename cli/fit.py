"""`taskres fit`: stage two."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskres_cache.errors import OptionError, UnknownNameError

from .fit_options import (
    ONE_SEED,
    ONE_SHOTS,
    Alpha,
    Base,
    BatchSize,
    Epochs,
    LearningRate,
    Patience,
    Precision,
    Residual,
    Search,
    Seeds,
    Shots,
    TrainedViews,
    ViewsAverage,
    WeightDecay,
)
from .options import DEFAULT_CACHE_DIR, Cache, CacheDir, Classes, Device, Json, Out, decimals, joined, numbers

if TYPE_CHECKING:
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.recipe import Recipe
    from taskres_cache.runs.fitting.base_files import BaseFile
    from taskres_cache.runs.run import Run


def fit(
    cache: Cache,
    shots: Shots = None,
    seeds: Seeds = None,
    alpha: Alpha = None,
    lr: LearningRate = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    weight_decay: WeightDecay = None,
    base: Base = None,
    residual: Residual = None,
    search: Search = False,
    patience: Patience = None,
    views: TrainedViews = None,
    views_average: ViewsAverage = False,
    precision: Precision = "fp32",
    classes: Classes = "all",
    device: Device = "auto",
    out: Out = Path("runs"),
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    as_json: Json = False,
) -> None:
    """Train task residuals on a cache.

    One run for each combination of shots, seed, base, alpha, learning rate and weight decay; each writes
    classifier.safetensors and metrics.json. Defaults are the paper's recipe, or the data set's own if the cache has
    one. Nothing is chosen by test accuracy.

    Example: taskres fit digits --shots 1,2,4,8,16 --seeds 1,2,3 --alpha auto
    """
    from taskres_cache.caches.class_halves import open_cache
    from taskres_cache.caches.finding import find_cache
    from taskres_cache.recipe import Recipe

    from .console import say
    from .notes import calibration_notes

    names = _base_names(base or ["regular"])
    counts, draws = numbers("--shots", joined(shots, ONE_SHOTS)), numbers("--seeds", joined(seeds, ONE_SEED))
    splits = [(count, seed) for count in counts for seed in draws]
    training = {"epochs": epochs, "batch_size": batch_size, "residual": residual, "patience": patience}
    use = {"views": views, "view_use": "average" if views_average else None, "precision": precision}
    lists = joined(alpha), joined(lr), joined(weight_decay)
    features = open_cache(find_cache(cache, cache_dir), classes)
    for fields in map(_placeholder, names):
        _recipes(Recipe().changed(**({"views": features.views} | _given(training | use | fields))), *lists, search)
    notes = calibration_notes(features, splits)

    from taskres_cache.reporting.notes import test_notes
    from taskres_cache.runs.finding import checkpoint_folder
    from taskres_cache.runs.fitting.study import fit_each, recipe_of
    from taskres_cache.system.devices import choose_device
    from taskres_cache.system.text import command

    bases, file = _bases(names, features)
    with_base = [recipe_of(features, **training, **use, **fields) for fields in bases]
    recipes = [recipe for one in with_base for recipe in _recipes(one, *lists, search)]
    for note in (*notes, *test_notes(features)):
        say(f"note: {note}")
    results = _announced(fit_each(features, splits, recipes, choose_device(device), out, file))
    if as_json:
        _print_json(features, results)
        return
    _print_tables(features, results)
    folder = checkpoint_folder(out, features.provenance) / features.provenance.dataset
    say("next: " + command("taskres", "report", folder))


def _announced(runs: "Iterator[Run]") -> "list[Run]":
    """Return all runs; print a line about each as soon as it is written."""
    from .console import say

    results = []
    for run in runs:
        say(_run_line(run))
        if run.kept is not None:
            say(f"note: {run.kept} holds a run of other inputs and is kept; the new run is in {run.folder}")
        results.append(run)
    return results


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in fields.items() if value is not None}


def _placeholder(base: str) -> dict[str, Any]:
    """Return the recipe fields of a base, without reading its file."""
    from taskres_cache.recipe import BUILT_BASES

    return {"base": base} if base in BUILT_BASES else {"base": "file", "base_sha256": "unread"}


def _bases(names: Sequence[str], cache: "FeatureCache") -> "tuple[list[dict[str, Any]], BaseFile | None]":
    """Return the recipe fields of each base in `--base`, and the file if it is one."""
    from taskres_cache.recipe import BUILT_BASES

    fields: list[dict[str, Any]] = [{"base": name} for name in names if name in BUILT_BASES]
    files = [name for name in names if name not in BUILT_BASES]
    if not files:
        return fields, None
    from taskres_cache.runs.fitting.base_files import read_base

    file = read_base(files[0], cache.classnames, cache.provenance.weights_sha256)
    return [*fields, {"base": "file", "base_sha256": file.sha256}], file


def _base_names(bases: Sequence[str]) -> list[str]:
    """Return the names and the file in `--base`, once each; raises OptionError for a second file."""
    from taskres_cache.recipe import BUILT_BASES

    parts = [part for base in bases for part in ([base] if Path(base).exists() else base.split(","))]
    names = list(dict.fromkeys(parts))
    files = [name for name in names if name not in BUILT_BASES]
    missing = next((name for name in files if not Path(name).exists()), None)
    if missing is not None:
        raise UnknownNameError("base", missing, BUILT_BASES, f"pass {', '.join(BUILT_BASES)}, or an existing file")
    if len(files) > 1:
        raise OptionError(f"--base takes one file, got {' and '.join(files)}; fit each of them separately")
    return names


def _recipes(recipe: "Recipe", alpha: str, lr: str, weight_decay: str, search: bool) -> "list[Recipe]":
    """Return a recipe for each combination of the listed values, or one that searches them with `--search`."""
    rule = alpha if alpha in ("auto", "learn") else None
    alphas = () if not alpha or rule else decimals("--alpha", alpha)
    lrs = decimals("--lr", lr) if lr else ()
    weight_decays = decimals("--weight-decay", weight_decay) if weight_decay else ()
    if search and rule == "learn":
        raise OptionError("--search chooses alpha, --alpha learn trains it; pass only one of them")
    if search:
        return [recipe.searching(alphas, lrs, weight_decays)]
    grid = product(alphas or (None,), lrs or (None,), weight_decays or (None,))
    return [recipe.changed(alpha_rule=rule, alpha=weight, lr=rate, weight_decay=decay) for weight, rate, decay in grid]


def _run_line(result: "Run") -> str:
    """Return a run's folder, test accuracy and times as one line."""
    from taskres_cache.reporting.tables import percent

    test, seconds = result.metrics.test_accuracy, result.metrics.seconds
    base = f", base {seconds.base:.2f} s" if seconds.base else ""
    return f"{result.folder}: test {percent(test)} %, fit {seconds.fit:.2f} s{base}"


def _print_json(cache: "FeatureCache", results: "Sequence[Run]") -> None:
    from taskres_cache.runs.results import summarise

    from .console import print_json

    summaries = [asdict(summary) for summary in summarise(result.metrics for result in results)]
    runs = [{"folder": str(result.folder), **result.metrics.to_json()} for result in results]
    print_json({"cache": str(cache.path), "summary": summaries, "runs": runs})


def _print_tables(cache: "FeatureCache", results: "Sequence[Run]") -> None:
    """Print a table of accuracies for each method, and one of the chosen values if there was a search."""
    from taskres_cache.reporting.sections import choice_table, method_table
    from taskres_cache.runs.results import summarise

    from .console import print_table

    source, only = cache.provenance, "" if cache.half == "all" else f", {cache.half} classes"
    summaries = summarise(result.metrics for result in results)
    for method in dict.fromkeys(summary.method for summary in summaries):
        title = f"{source.dataset}, {source.backbone} ({source.pretrained})\n{method}{only}"
        print_table(method_table([summary for summary in summaries if summary.method == method], title))
        chosen = [result.metrics for result in results if result.metrics.method == method]
        if chosen[0].chosen is not None:
            print_table(choice_table(chosen, title))
