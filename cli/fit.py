"""`taskres fit`: stage two."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskres_cache.errors import OptionError

from . import completion
from .options import Cache, CacheDir, Classes, Device, Json, Out, Seeds, Shots, decimals, numbers

if TYPE_CHECKING:
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.recipe import Recipe
    from taskres_cache.runs.base_files import BaseFile
    from taskres_cache.runs.run import Run


def fit(
    cache: Cache,
    shots: Shots = "16",
    seeds: Seeds = "1",
    alpha: Annotated[
        str | None,
        typer.Option(
            help="Weight of the residual: a number, several with commas, auto (chosen by val accuracy) or learn.",
            show_default="0.5, or the data set's own",
            autocompletion=completion.one_of("auto", "learn"),
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(help="Peak rate of Adam; several with commas.", show_default="0.002, or the data set's own"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training images.", show_default="100 below 8 shots, 200 from 8 on"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default="256")] = None,
    weight_decay: Annotated[
        str | None, typer.Option(help="Added to the gradient; several with commas.", show_default="0.0005")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Text classifier to start from: regular, enhanced (its projection is tuned on the same shots first), "
            "enhanced-only (no residual), several with commas; or a file: the authors' model.pth.tar, a safetensors "
            "file with base or projection, a run.",
            show_default="regular",
            autocompletion=completion.bases,
        ),
    ] = None,
    residual: Annotated[
        str | None,
        typer.Option(
            help="What is trained: text, image (one row, added to every image) or both.",
            show_default="text",
            autocompletion=completion.choices("residual"),
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="Choose alpha, rate and decay by val accuracy, among those given or around the recipe."
        ),
    ] = False,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many epochs without a better val accuracy and keep the best.",
            show_default="keep the last",
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Train on so many augmented views of each image, another one each epoch; 0 for the images themselves.",
            show_default="all that the cache has",
        ),
    ] = None,
    views_average: Annotated[
        bool, typer.Option("--views-average", help="Train on the mean of each image's views, as Tip-Adapter does.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            help="Of the matrix products: fp32, bf16, or tf32 (CUDA).", autocompletion=completion.choices("precision")
        ),
    ] = "fp32",
    classes: Classes = "all",
    device: Device = "auto",
    out: Out = Path("runs"),
    cache_dir: CacheDir = Path("cache"),
    as_json: Json = False,
) -> None:
    """Train the task residual on a cache: one run for every shot count, seed, base, alpha, rate and decay.

    Each run leaves classifier.safetensors and metrics.json. The recipe is the paper's, or the data set's own where
    the cache records one. Nothing is ever chosen by test accuracy.

    Example: taskres fit digits --shots 1,2,4,8,16 --seeds 1,2,3 --alpha auto
    """
    from taskres_cache.caches.class_halves import open_cache
    from taskres_cache.caches.finding import find_cache
    from taskres_cache.runs.finding import checkpoint_folder
    from taskres_cache.runs.study import fit_each, recipe_of
    from taskres_cache.system.devices import choose_device

    from .console import say

    features = open_cache(find_cache(cache, cache_dir), classes)
    bases, file = _bases(base, features)
    said = {"epochs": epochs, "batch_size": batch_size, "residual": residual, "patience": patience}
    use = {"views": views, "view_use": "average" if views_average else None, "precision": precision}
    own = [recipe_of(features, **said, **use, **chosen) for chosen in bases]
    recipes = [recipe for one in own for recipe in _recipes(one, alpha, lr, weight_decay, search)]
    splits = [(count, seed) for count in numbers("--shots", shots) for seed in numbers("--seeds", seeds)]
    results = []
    for result in fit_each(features, splits, recipes, choose_device(device), out, file):
        say(_told(result))
        results.append(result)
    if as_json:
        _print_json(features, results)
        return
    _print_tables(features, results)
    say(f"next: taskres report {checkpoint_folder(out, features.provenance) / features.provenance.dataset}")


def _bases(base: str | None, cache: "FeatureCache") -> "tuple[list[dict[str, Any]], BaseFile | None]":
    """Return what a --base changes in a recipe, for each recipe that it asks for, and the file if it names one."""
    from taskres_cache.recipe import BUILT_BASES
    from taskres_cache.runs.base_files import read_base

    words = (base or "regular").split(",")
    if all(word in BUILT_BASES for word in words):
        return [{"base": word} for word in dict.fromkeys(words)], None
    file = read_base(str(base), cache.classnames, cache.provenance.weights_sha256)
    return [{"base": "file", "base_sha256": file.sha256}], file


def _recipes(
    recipe: "Recipe", alpha: str | None, lr: str | None, weight_decay: str | None, search: bool
) -> "list[Recipe]":
    """Return a recipe for each combination of what was listed; with --search one that chooses among it all."""
    rule = alpha if alpha in ("auto", "learn") else None
    alphas = () if alpha is None or rule else decimals("--alpha", alpha)
    lrs = decimals("--lr", lr) if lr else ()
    weight_decays = decimals("--weight-decay", weight_decay) if weight_decay else ()
    if search and rule == "learn":
        raise OptionError("--search chooses alpha and --alpha learn trains it; pass one of them")
    if search:
        return [recipe.searching(alphas, lrs, weight_decays)]
    grid = product(alphas or (None,), lrs or (None,), weight_decays or (None,))
    return [recipe.changed(alpha_rule=rule, alpha=one, lr=rate, weight_decay=decay) for one, rate, decay in grid]


def _told(result: "Run") -> str:
    """Return one run as a line."""
    from taskres_cache.reporting.tables import percent

    test, seconds = result.metrics.test_accuracy, result.metrics.seconds
    enhanced = f", its base in {seconds.base:.2f} s" if seconds.base else ""
    return f"{result.folder}: test {percent(test)} %, fitted in {seconds.fit:.2f} s{enhanced}"


def _print_json(cache: "FeatureCache", results: "Sequence[Run]") -> None:
    from taskres_cache.runs.results import summarise

    from .console import print_json

    summaries = [asdict(summary) for summary in summarise(result.metrics for result in results)]
    runs = [{"folder": str(result.folder), **result.metrics.to_json()} for result in results]
    print_json({"cache": str(cache.path), "summary": summaries, "runs": runs})


def _print_tables(cache: "FeatureCache", results: "Sequence[Run]") -> None:
    """Print a table for each method, and what was chosen where there was a choice."""
    from taskres_cache.reporting.sections import choice_table, method_table
    from taskres_cache.runs.results import summarise

    from .console import print_table

    source, only = cache.provenance, "" if cache.half == "all" else f", {cache.half} classes"
    summaries = summarise(result.metrics for result in results)
    for method in dict.fromkeys(summary.method for summary in summaries):
        title = f"{source.dataset}, {source.backbone} ({source.pretrained}), {method}{only}"
        print_table(method_table([summary for summary in summaries if summary.method == method], title))
        chosen = [result.metrics for result in results if result.metrics.method == method]
        if chosen[0].chosen is not None:
            print_table(choice_table(chosen, title))
