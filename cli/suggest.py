"""`taskres suggest`: which images to label next."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskres_cache.system.files import refuse_unwritable, replaced
from taskres_cache.system.text import as_csv

from . import checks, completion
from .options import DEFAULT_CACHE_DIR, BatchSize, CacheDir, Device, Json, Precision, Workers

if TYPE_CHECKING:
    from taskres_cache.choosing.suggestions import Known, Suggestions
    from taskres_cache.encoders.backbone import Backbone

LEAD = "Label them in this order: each image stands for the images around it."


def suggest(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run folder, or before any label a model: MODEL or MODEL:TAG.",
            autocompletion=completion.runs,
        ),
    ],
    folder: Annotated[
        list[str], typer.Argument(metavar="FOLDER", help="Unlabelled images: folders or files.", show_default=False)
    ],
    count: Annotated[int, typer.Option("--count", "-n", callback=checks.at_least(1), help="Number of images.")] = 50,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the list as CSV.", show_default=False)
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="Write an HTML page with thumbnails.", show_default=False),
    ] = None,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained",
            metavar="PATH",
            callback=checks.checkpoint_path,
            help="The checkpoint file, if the run was made with a local one.",
            show_default="the run's tag",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Print the images of a folder in the order in which labels help most.

    Each image represents many others. From four labels per class on, images that the run is unsure of count more.
    Images that the run's cache has labels of, and copies of these, are left out.

    Example: taskres suggest runs/RN50-openai/photos new-photos --page label.html
    """
    from taskres_cache.datasets.named_files import find_images

    for file in (csv, page):
        if file is not None:
            refuse_unwritable(file)
    found = find_images(folder)
    encoder, known = _encoder(run, pretrained, device, precision, cache_dir)

    from taskres_cache.choosing.suggestions import suggest as suggested_images
    from taskres_cache.encoders.encoding import EncodingOptions

    from .console import image_count, print_json, progress, say

    with progress() as display:
        options = EncodingOptions(batch_size=batch_size, workers=workers)
        suggested = suggested_images(found.paths, count, encoder, known, options, display)
    for path, reason in (found.unreadable | suggested.unreadable).items():
        say(f"skipped {path}: {reason}")
    if suggested.labelled:
        say(f"note: {image_count(suggested.labelled)} left out: labelled already, or equal to a labelled one")
    if not suggested.images:
        say("no image is left to suggest")
    if csv is not None:
        _write(csv, os.fsencode(_as_csv(suggested)))
    if page is not None:
        _write(page, _as_page(suggested, known).encode("utf-8", "surrogateescape"))
    if as_json:
        print_json(asdict(suggested))
    elif csv is None and page is None and suggested.images:
        _print(suggested)


def _encoder(
    run: str, pretrained: str | None, device: str, precision: str, cache_dir: Path
) -> "tuple[Backbone, Known | None]":
    """Return the encoder of a run with what the run knows, or that of a model."""
    from taskres_cache.datasets.word_lists import clip_models

    name = run.partition(":")[0].replace("/", "-")
    if not Path(run).exists() and (run.startswith(checks.PREFIXES) or name in clip_models()):
        from taskres_cache.choosing.trial import named_checkpoint
        from taskres_cache.encoders.loading import load_backbone

        return load_backbone(*named_checkpoint(run), device, precision), None
    from taskres_cache.runs.finding import find_run

    folder = find_run(Path(run))

    from taskres_cache.caches.class_halves import open_cache
    from taskres_cache.choosing.suggestions import Known
    from taskres_cache.runs.encoder import load_encoder
    from taskres_cache.runs.run import own_cache, read_classifier

    classifier = read_classifier(folder)
    cache = open_cache(own_cache(folder, classifier, cache_dir), classifier.half)
    return load_encoder(classifier, pretrained, device, precision), Known(classifier, cache)


def _as_csv(suggested: "Suggestions") -> str:
    rows: list[list[str | float]] = [["rank", "path", "score", "reason", "predicted"]]
    for rank, one in enumerate(suggested.images, start=1):
        rows.append([rank, one.path, round(one.score, 6), one.reason, one.predicted])
    return as_csv(rows)


def _as_page(suggested: "Suggestions", known: "Known | None") -> str:
    from taskres_cache.choosing.label_page import Shown, label_page
    from taskres_cache.datasets.images import ON_WHITE
    from taskres_cache.datasets.named_files import NamedFiles

    lines = (tuple(line for line in (one.predicted, one.reason) if line) for one in suggested.images)
    shown = [Shown(one.path, below) for one, below in zip(suggested.images, lines, strict=True)]
    orientation = ON_WHITE if known is None else known.classifier.provenance.preprocess.get("orientation", "exif")
    title = f"{len(shown)} images to label"
    return label_page(title, LEAD, shown, NamedFiles(Path(), orientation))


def _write(file: Path, content: bytes) -> None:
    from .console import say

    with replaced(file) as temporary:
        temporary.write_bytes(content)
    say(f"written: {file}")


def _print(suggested: "Suggestions") -> None:
    from taskres_cache.reporting.tables import Table

    from .console import print_table

    is_predicted = any(one.predicted for one in suggested.images)
    columns = ("rank", "path", *(("predicted",) if is_predicted else ()), "reason")
    rows = tuple(
        (str(rank), one.path, *((one.predicted,) if is_predicted else ()), one.reason)
        for rank, one in enumerate(suggested.images, start=1)
    )
    print_table(Table("images to label", columns, rows, left=len(columns)))
