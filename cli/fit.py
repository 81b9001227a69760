"""`taskres fit`: stage two."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Cache, CacheDir, Classes, Device, Json, Out, Seeds, Shots, decimals, numbers

if TYPE_CHECKING:
    from taskres_cache.summary import Summary


def fit(
    cache: Cache,
    shots: Shots = "16",
    seeds: Seeds = "1",
    alpha: Annotated[
        str | None,
        typer.Option(
            help="Weight of the residual: a number, several with commas, auto (chosen by val accuracy) or learn.  ",
            show_default="0.5, or the data set's own",
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(help="Peak rate of Adam; several with commas.", show_default="0.002, or the data set's own"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(show_default="100 below 8 shots, 200 from 8 on")] = None,
    batch_size: Annotated[int | None, typer.Option(show_default="256")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Added to the gradient.", show_default="0.0005")] = None,
    base: Annotated[str | None, typer.Option(help="Text classifier to start from.", show_default="regular")] = None,
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
    precision: Annotated[str, typer.Option(help="Of the matrix products: fp32, bf16, or tf32 (CUDA).")] = "fp32",
    classes: Classes = "all",
    device: Device = "auto",
    out: Out = Path("runs"),
    cache_dir: CacheDir = Path("cache"),
    as_json: Json = False,
) -> None:
    """Train the task residual on a cache: one run for every shot count, seed, alpha and rate.

    Each run leaves classifier.safetensors and metrics.json. The recipe is the paper's, or the data set's own where
    the cache records one. Nothing is ever chosen by test accuracy.

    Example: taskres fit digits --shots 1,2,4,8,16 --seeds 1,2,3 --alpha auto
    """
    from taskres_cache.catalogue import find_cache
    from taskres_cache.devices import choose_device
    from taskres_cache.halves import open_cache
    from taskres_cache.study import recipe_of, run_study
    from taskres_cache.summary import summarise
    from taskres_cache.tables import percent

    from .console import print_json, say

    features = open_cache(find_cache(cache, cache_dir), classes)
    chosen = {"epochs": epochs, "batch_size": batch_size, "weight_decay": weight_decay, "base": base}
    use = {"views": views, "view_use": "average" if views_average else None}
    recipe = recipe_of(features, **chosen, **use, patience=patience, precision=precision)
    recipes = [
        recipe.changed(**weight, **rate)
        for weight in _alphas(alpha)
        for rate in ([{"lr": value} for value in decimals("--lr", lr)] if lr else [{}])
    ]
    splits = [(count, seed) for count in numbers("--shots", shots) for seed in numbers("--seeds", seeds)]
    results = []
    for result in run_study(features, splits, recipes, choose_device(device), out):
        test, seconds = result.metrics["test_accuracy"], result.metrics["seconds"]["fit"]
        say(f"{result.folder}: test {percent(test)} %, fitted in {seconds:.2f} s")
        results.append(result)
    summaries = summarise(result.metrics for result in results)
    if as_json:
        runs = [{"folder": str(result.folder), **result.metrics} for result in results]
        print_json({"cache": str(features.path), "summary": [asdict(summary) for summary in summaries], "runs": runs})
        return
    source, only = features.provenance, "" if classes == "all" else f", {classes} classes"
    for method in dict.fromkeys(summary.method for summary in summaries):
        title = f"{source.dataset}, {source.backbone} ({source.pretrained}), {method}{only}"
        _print_summary(title, [summary for summary in summaries if summary.method == method])


def _alphas(text: str | None) -> list[dict[str, Any]]:
    """Return what an --alpha changes in a recipe, for each recipe that it asks for."""
    if text is None:
        return [{}]
    if text in ("auto", "learn"):
        return [{"alpha_rule": text}]
    return [{"alpha": value} for value in decimals("--alpha", text)]


def _print_summary(title: str, summaries: "list[Summary]") -> None:
    from taskres_cache.tables import Table, percent

    from .console import print_table

    columns = ("shots", "seeds", "zero-shot %", "val %", "test %", "std", "gain")
    rows = tuple(
        (
            str(row.shots),
            ",".join(map(str, row.seeds)),
            percent(row.zero_shot_accuracy),
            percent(row.mean_val_accuracy),
            percent(row.mean_test_accuracy),
            percent(row.std_test_accuracy),
            f"{row.mean_test_accuracy - row.zero_shot_accuracy:+.2f}",
        )
        for row in summaries
    )
    heading = f"{title}: test accuracy, mean and standard deviation over seeds"
    print_table(Table(heading, columns, rows, left=0))
