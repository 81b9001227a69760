"""`taskres benchmark`: the paper's tables from whatever is installed."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import checks, completion
from .methods import asked_methods
from .options import (
    DEFAULT_CACHE_DIR,
    LIST,
    Backbone,
    BatchSize,
    CacheDir,
    Device,
    Out,
    Precision,
    Pretrained,
    PretrainedLike,
    Seeds,
    Shots,
    Workers,
    joined,
    split_numbers,
)

if TYPE_CHECKING:
    from taskres_cache.benchmark.pipeline import Outcome
    from taskres_cache.encoders.backbone import Backbone as LoadedBackbone


def benchmark(
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that contains the data sets.", show_default="none: the bundled digits"),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            metavar=LIST,
            help="Data sets, separated by commas or spaces.",
            show_default="all that are complete",
            autocompletion=completion.several_datasets,
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar=LIST,
            help="Methods to fit next to taskres, see `taskres methods`; all, or path/to/file.py:name for your own.",
            show_default="taskres alone",
            autocompletion=completion.methods,
        ),
    ] = None,
    backbone: Backbone = None,
    pretrained: Pretrained = None,
    pretrained_like: PretrainedLike = None,
    shots: Shots = None,
    seeds: Seeds = None,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    out: Out = Path("runs"),
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
) -> None:
    """Extract, fit and evaluate data sets; print the paper's tables.

    The tables are also written as Markdown and CSV. Existing caches and runs are reused, so a stopped benchmark
    continues where it stopped.

    Example: taskres benchmark --root /data --datasets "caltech101 dtd"
    """
    counts, draws = split_numbers(shots, seeds)
    checks.splits(counts, draws)
    others, names = asked_methods(methods), joined(datasets).replace(",", " ").split()
    checks.datasets(names)
    if backbone:
        checks.checkpoint(backbone, pretrained)

    from taskres_cache.benchmark.pipeline import Folders, benchmark_entries, run_benchmark
    from taskres_cache.encoders.loading import load_backbone
    from taskres_cache.extraction.extract import ExtractOptions

    from .console import kept_when_interrupted, progress, say

    options = ExtractOptions(counts, draws, batch_size=batch_size, workers=workers)
    entries = benchmark_entries(names or (None if root else ["digits"]))
    default = entries[0].backbone
    checkpoint = (backbone, pretrained) if backbone else (default.name, pretrained or default.pretrained)

    @cache
    def encoder() -> "LoadedBackbone":
        loaded = load_backbone(*checkpoint, device, precision, pretrained_like)
        for note in loaded.notes:
            say(f"note: {note}")
        return loaded

    folders = Folders(root or Path("."), cache_dir, out)
    outcomes = []
    with kept_when_interrupted(), progress() as display:
        for outcome in run_benchmark(entries, encoder, options, folders, display, others):
            for line in _outcome_lines(outcome):
                say(line)
            outcomes.append(outcome)
    _conclude(outcomes, encoder, out)


def _conclude(outcomes: "list[Outcome]", encoder: "Callable[[], LoadedBackbone]", out: Path) -> None:
    """Print and write the tables; exit with status 1 if nothing was measured or a data set failed."""
    from taskres_cache.benchmark.pipeline import LeftOut

    from .console import say

    if all(isinstance(outcome, LeftOut) for outcome in outcomes):
        say("no data set could be measured; `taskres datasets --root DIR` shows what is missing and how to get it")
        raise typer.Exit(1)
    used = encoder()
    _write_tables(outcomes, f"{used.name} ({used.pretrained})", out / f"{used.name}-{used.pretrained}")
    if any(isinstance(outcome, LeftOut) and outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def _outcome_lines(outcome: "Outcome") -> list[str]:
    """Return the result of a data set as one line, and a line per note."""
    from taskres_cache.benchmark.pipeline import DatasetResult, LeftOut
    from taskres_cache.reporting.tables import in_shots

    if isinstance(outcome, LeftOut):
        return [f"{outcome.name}: left out{', failed' if outcome.failed else ''}: {outcome.reason}"]
    if isinstance(outcome, DatasetResult):
        best = outcome.summaries[-1]
        summary = (
            f"{outcome.name}: {len(outcome.runs)} runs, {outcome.reused} of them reused; "
            f"{in_shots(best.shots)}: {best.mean_test_accuracy:.2f} %, zero-shot {best.zero_shot_accuracy:.2f} %"
        )
        return [summary, *(f"  note: {note}" for note in outcome.notes)]
    return [f"{outcome.name}: {outcome.mean_test_accuracy:.2f} %, zero-shot {outcome.zero_shot_accuracy:.2f} %"]


def _write_tables(outcomes: "list[Outcome]", title: str, folder: Path) -> None:
    """Print the tables and write them to the folder of the runs."""
    from taskres_cache.benchmark.method_tables import method_tables
    from taskres_cache.benchmark.tables import benchmark_tables, write_benchmark

    from .console import print_table, say

    for table in (*benchmark_tables(outcomes, title), *method_tables(outcomes)):
        print_table(table)
    for file in write_benchmark(outcomes, title, folder):
        say(f"written: {file}")
