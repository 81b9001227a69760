"""`taskres report`: the results of runs as a page, tables and curves."""

from pathlib import Path
from typing import Annotated

import typer

from . import completion
from .options import DEFAULT_CACHE_DIR, CacheDir, Device


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders, or folders that contain several runs.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write.", show_default="report.html, or none with --to or --table")
    ] = None,
    to: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="File to write: .md, .csv, .png (curves) or .html; can be repeated.",
        ),
    ] = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="File for the comparison of methods alone: .md, .csv, .tex, or - to print it; can be repeated.",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the report.", show_default="the data sets' names")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the images, for thumbnails of mistakes, or the --root of known data sets.",
            show_default="the folder the cache was made from",
        ),
    ] = None,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    device: Device = "auto",
) -> None:
    """Write a report of runs: curves, per-class gains, mistakes.

    Also comparisons of methods, confusions, calibration and how the runs were made. The page is a single HTML file that
    needs no network.

    Example: taskres report runs/glyph-clip-bundled/digits --out digits.html
    """
    from taskres_cache.reporting.destinations import STANDARD_OUTPUT, check_suffixes, check_table_suffixes
    from taskres_cache.runs.finding import find_runs
    from taskres_cache.system.files import refuse_unwritable

    files = [*([out or Path("report.html")] if out or not (to or table) else []), *(to or [])]
    tables = [file for file in table or () if file != STANDARD_OUTPUT]
    check_suffixes(files)
    check_table_suffixes(tables)
    for file in (*files, *tables):
        refuse_unwritable(file)
    for run in runs:
        find_runs(run)

    from taskres_cache.reporting.report import compared_methods, comparison_notes, write_comparison, write_report
    from taskres_cache.reporting.studies import gather_studies
    from taskres_cache.system.devices import choose_device

    from .console import print_table, say

    studies = gather_studies(runs, cache_dir, choose_device(device))
    others = any(run.metrics.record for study in studies for run in study.runs)
    what = "Few-shot methods" if others else "Task residuals"
    heading = title or f"{what} on {', '.join(dict.fromkeys(study.title for study in studies))}"
    for study in studies:
        if study.analysis_error:
            say(f"note: {study.title}: no per-class results: {study.analysis_error}")
        for note in study.analysis.notes if study.analysis else ():
            say(f"note: {study.title}: {note}")
    for note in comparison_notes(studies):
        say(f"note: {note}")
    for file in files:
        write_report(studies, heading, images, file)
        say(f"written: {file}")
    for file in tables:
        write_comparison(studies, file)
        say(f"written: {file}")
    if len(tables) < len(table or ()):
        for one in compared_methods(studies):
            print_table(one)
