"""`taskres benchmark`: the paper's tables from whatever is installed."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import completion
from .options import (
    PAPER_SEEDS,
    PAPER_SHOTS,
    Backbone,
    BatchSize,
    CacheDir,
    Device,
    Out,
    Precision,
    Pretrained,
    Seeds,
    Shots,
    Workers,
    numbers,
)

if TYPE_CHECKING:
    from taskres_cache.benchmark.benchmark import Outcome


def benchmark(
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that the data sets lie in.", show_default="none, the bundled digits"),
    ] = None,
    datasets: Annotated[
        str | None,
        typer.Option(
            help="Names, with spaces or commas.",
            show_default="all that are installed",
            autocompletion=completion.several_datasets,
        ),
    ] = None,
    backbone: Backbone = None,
    pretrained: Pretrained = None,
    shots: Shots = PAPER_SHOTS,
    seeds: Seeds = PAPER_SEEDS,
    cache_dir: CacheDir = Path("cache"),
    out: Out = Path("runs"),
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
) -> None:
    """Extract, fit and evaluate every data set below --root, then the tables: console, Markdown and CSV.

    Goes on where it stopped: what is in caches and runs already is not done again.

    Example: taskres benchmark --root /data --datasets "caltech101 dtd"
    """
    from taskres_cache.benchmark.benchmark import LeftOut, Places, benchmark_entries, run_benchmark
    from taskres_cache.encoders.loading import load_backbone
    from taskres_cache.extraction.extract import ExtractOptions

    from .console import kept_when_interrupted, progress, say

    options = ExtractOptions(
        numbers("--shots", shots), numbers("--seeds", seeds), batch_size=batch_size, workers=workers
    )
    named = (datasets or "").replace(",", " ").split()
    entries = benchmark_entries(named or (None if root else ["digits"]))
    default = entries[0].backbone
    checkpoint = backbone or default.name, pretrained or default.pretrained
    encoder = cache(lambda: load_backbone(*checkpoint, device, precision))
    places = Places(root or Path("."), cache_dir, out)
    outcomes = []
    with kept_when_interrupted(), progress() as heard:
        for outcome in run_benchmark(entries, encoder, options, places, heard):
            say(_told(outcome))
            outcomes.append(outcome)
    if all(isinstance(outcome, LeftOut) for outcome in outcomes):
        say("nothing could be measured; `taskres datasets --root DIR` says what lacks and where it comes from")
        raise typer.Exit(1)
    used = encoder()
    _write_tables(outcomes, f"{used.name} ({used.pretrained})", out / f"{used.name}-{used.pretrained}")
    if any(isinstance(outcome, LeftOut) and outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def _told(outcome: "Outcome") -> str:
    """Return what came of a data set, in lines."""
    from taskres_cache.benchmark.benchmark import LeftOut, Measured

    if isinstance(outcome, LeftOut):
        return f"{outcome.name}: left out{', failed' if outcome.failed else ''}: {outcome.reason}"
    if isinstance(outcome, Measured):
        notes = "".join(f"\n  note: {note}" for note in outcome.notes)
        best = outcome.summaries[-1]
        return (
            f"{outcome.name}: {len(outcome.runs)} runs, {outcome.already} of them there already; "
            f"{best.shots} shots: {best.mean_test_accuracy:.2f} %, zero-shot {best.zero_shot_accuracy:.2f} %{notes}"
        )
    return f"{outcome.name}: {outcome.mean_test_accuracy:.2f} %, zero-shot {outcome.zero_shot_accuracy:.2f} %"


def _write_tables(outcomes: "list[Outcome]", title: str, folder: Path) -> None:
    """Print the tables and write them beside the runs."""
    from taskres_cache.benchmark.tables import benchmark_tables, write_benchmark

    from .console import print_table, say

    for table in benchmark_tables(outcomes, title):
        print_table(table)
    for file in write_benchmark(outcomes, title, folder):
        say(f"written: {file}")
