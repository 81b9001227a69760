"""`taskres mistakes`: each image with its prediction, and how likely its label is wrong."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import checks, completion
from .options import DEFAULT_CACHE_DIR, CacheDir, Device, Json

if TYPE_CHECKING:
    from taskres_cache.inspection.mistakes import Inspected

PARTS = ("all", "train", "val", "test")
SHOWN = 10


def mistakes(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run folder.", show_default=False, autocompletion=completion.runs_or_caches
        ),
    ],
    part: Annotated[
        str,
        typer.Option(
            "--part",
            callback=checks.one_of(*PARTS),
            help="Images: all, train, val or test.",
            autocompletion=completion.one_of(*PARTS),
        ),
    ] = "all",
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write all images to a CSV file.", show_default=False)
    ] = None,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """List the images of a run by how likely their label is wrong.

    A label is judged by classifiers that were not fitted on its image (five-fold cross-validation), so training images
    count too. Correct the column "label" of the CSV file.

    Example: taskres mistakes runs/RN50-openai/pets --csv mistakes.csv
    """
    from taskres_cache.caches.class_halves import open_cache
    from taskres_cache.inspection.mistakes import as_rows, inspected_images
    from taskres_cache.runs.run import own_cache, read_classifier
    from taskres_cache.system.devices import choose_device
    from taskres_cache.system.files import refuse_unwritable, replaced
    from taskres_cache.system.text import as_csv

    from .console import print_json, say

    if csv is not None:
        refuse_unwritable(csv)
    classifier = read_classifier(run)
    cache = open_cache(own_cache(run, classifier, cache_dir), classifier.half)
    parts = PARTS[1:] if part == "all" else (part,)
    images = inspected_images(classifier, cache, parts, choose_device(device))
    if csv is not None:
        with replaced(csv) as temporary:
            temporary.write_text(as_csv(as_rows(images)), encoding="utf-8")
        say(f"wrote {csv}")
    if as_json:
        print_json([asdict(one) for one in images])
        return
    _print(images)


def _print(images: "list[Inspected]") -> None:
    from taskres_cache.reporting.tables import Table

    from .console import print_table

    suspected = sum(one.suspect for one in images)
    title = f"{len(images)} images, {suspected} with a label that is probably wrong; the most probable first"
    columns = ("image", "label", "prediction", "part", "confidence %", "label wrong %")
    rows = tuple(
        (one.path, one.label, one.prediction, one.part, f"{100 * one.confidence:.1f}", f"{100 * one.label_issue:.1f}")
        for one in images[:SHOWN]
    )
    print_table(Table(title, columns, rows, left=4))
