"""`taskres report`: what came of runs, for people."""

from pathlib import Path
from typing import Annotated

import typer

from . import completion
from .options import CacheDir, Device


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS...",
            help="Run folders, or folders above several.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page.", show_default="report.html, or none where --to names files")
    ] = None,
    to: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A file to write, by its suffix: .md, .csv, .png (curves) or .html; can be given several times.",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the report.", show_default="the data sets")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Where the images are, for thumbnails of mistakes: the folder, or the root of known data sets.",
            show_default="where the cache was made from",
        ),
    ] = None,
    cache_dir: CacheDir = Path("cache"),
    device: Device = "auto",
) -> None:
    """Write a report of runs: curves over shots, what each class gains, confusions, certain mistakes, how it was made.

    The page is one file that needs no network: to be sent, archived or printed as it is.

    Example: taskres report runs/glyph-clip-bundled/digits --out digits.html
    """
    from taskres_cache.reporting.report import refuse_unknown_kinds, write_report
    from taskres_cache.reporting.studies import gather_studies
    from taskres_cache.system.devices import choose_device

    from .console import say

    files = [*([out or Path("report.html")] if out or not to else []), *(to or [])]
    refuse_unknown_kinds(files)
    studies = gather_studies(runs, cache_dir, choose_device(device))
    heading = title or f"Task residuals on {', '.join(dict.fromkeys(study.title for study in studies))}"
    for study in studies:
        if study.unseen:
            say(f"note: {study.title}: no closer look, {study.unseen}")
    for file in files:
        write_report(studies, heading, images, file)
        say(f"written: {file}")
