"""`taskres fit`: stage two."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Cache, CacheDir, Classes, Device, Json, Out, Seeds, Shots, numbers

if TYPE_CHECKING:
    from taskres_cache.study import Summary


def fit(
    cache: Cache,
    shots: Shots = "16",
    seeds: Seeds = "1",
    alpha: Annotated[
        float | None,
        typer.Option(help="Weight of the residual.  [default: 0.5, or the data set's own]", show_default=False),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak rate of Adam.  [default: 0.002, or the data set's own]", show_default=False),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="[default: 100 below 8 shots, 200 from 8 on]", show_default=False)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="[default: 256]", show_default=False)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Added to the gradient.  [default: 0.0005]", show_default=False)
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Text classifier to start from.  [default: regular]", show_default=False)
    ] = None,
    classes: Classes = "all",
    device: Device = "auto",
    out: Out = Path("runs"),
    cache_dir: CacheDir = Path("cache"),
    as_json: Json = False,
) -> None:
    """Train the task residual on a cache: one run for every shot count and seed.

    Each run leaves classifier.safetensors and metrics.json. The recipe is the paper's, or the data set's own where
    the cache records one.

    Example: taskres fit digits --shots 1,2,4,8,16 --seeds 1,2,3
    """
    from taskres_cache.devices import choose_device
    from taskres_cache.halves import open_cache
    from taskres_cache.store import find_cache
    from taskres_cache.study import recipe_of, run_study, summarise

    from .console import print_json, say

    features = open_cache(find_cache(cache, cache_dir), classes)
    recipe = recipe_of(
        features, alpha=alpha, lr=lr, epochs=epochs, batch_size=batch_size, weight_decay=weight_decay, base=base
    )
    results = []
    splits = [(count, seed) for count in numbers("--shots", shots) for seed in numbers("--seeds", seeds)]
    for result in run_study(features, splits, recipe, choose_device(device), out):
        test, seconds = result.metrics["test_accuracy"], result.metrics["seconds"]["fit"]
        say(f"{result.folder}: test {test:.2f} %, fitted in {seconds:.2f} s")
        results.append(result)
    summaries = summarise(result.metrics for result in results)
    if as_json:
        runs = [{"folder": str(result.folder), **result.metrics} for result in results]
        table = [asdict(summary) for summary in summaries]
        print_json({"cache": str(features.path), "recipe": recipe.as_dict(), "summary": table, "runs": runs})
    else:
        source, only = features.provenance, "" if classes == "all" else f", {classes} classes"
        _print_summary(
            f"{source.dataset}, {source.backbone} ({source.pretrained}), {recipe.method_name()}{only}", summaries
        )


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
