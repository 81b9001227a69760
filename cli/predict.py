"""`taskres predict`: a fitted classifier on new images."""

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskres_cache.errors import OptionError, TaskresError
from taskres_cache.system.files import refuse_unwritable, replaced
from taskres_cache.system.text import as_csv

from . import checks
from .options import BatchSize, Best, Device, Ensemble, Json, RunCheckpoint, RunPrecision, Runs, Workers

if TYPE_CHECKING:
    from taskres_cache.caches.provenance import Provenance
    from taskres_cache.datasets.named_files import FoundImages
    from taskres_cache.runs.prediction import PredictedImages
    from taskres_cache.runs.several.ensemble import Ensemble as Classifiers

STANDARD = "-"  # standard input or output instead of a file
FEW = 20  # images that are shown in detail


def predict(
    run: Runs,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders (all images below them), or - for paths on standard input, one per line.",
            show_default=False,
        ),
    ],
    top_k: Annotated[
        int, typer.Option("--top-k", callback=checks.at_least(1), help="Number of top classes to show per image.")
    ] = 5,
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv", metavar="FILE", help="Write a CSV file with one line per image; - prints it.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    best: Best = False,
    ensemble: Ensemble = False,
    pretrained: RunCheckpoint = None,
    device: Device = "auto",
    precision: RunPrecision = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
) -> None:
    """Predict the classes of new images, with calibrated probabilities.

    Up to 20 files are shown in detail; more files, and folders, get one line per image and a summary by class.
    Unreadable images are listed and skipped.

    Example: taskres predict runs/RN50-openai/photos new-photos --csv new.csv
    """
    from taskres_cache.datasets.named_files import find_images
    from taskres_cache.runs.finding import find_run

    _check_csv(csv, as_json)
    if not (best or ensemble):
        find_run(run)
    found = find_images(_with_listed(images))
    _refuse_missing(found)

    from taskres_cache.runs.encoder import load_encoder
    from taskres_cache.runs.prediction import PredictOptions, predict_images  # seconds, for torch
    from taskres_cache.runs.several.choosing import chosen_runs, read_ensemble
    from taskres_cache.system.progress import Silent

    from .console import progress

    options = PredictOptions(top_k, batch_size=batch_size, workers=workers)
    folders = chosen_runs(run, best, ensemble)
    classifiers = read_ensemble(folders)
    _say_chosen(folders, best, ensemble)
    encoder = load_encoder(classifiers.members[0], pretrained, device, precision)
    with progress() if len(found.paths) > FEW else nullcontext(Silent()) as display:
        predicted = predict_images(found.paths, classifiers, encoder, options, display)
    predicted = replace(predicted, unreadable=found.unreadable | predicted.unreadable)
    _note_black(classifiers.provenance, predicted)
    _report_skipped(found, predicted)
    if csv is not None:
        _write_csv(predicted, csv)
    if as_json:
        _print_json(folders, classifiers, predicted)
    elif csv != STANDARD:
        _print(found, predicted, csv)


def _say_chosen(folders: Sequence[Path], best: bool, ensemble: bool) -> None:
    """Print which runs `--best` or `--ensemble` use."""
    from .console import say

    if best:
        say(f"run: {folders[0]}")
    elif ensemble:
        say(f"ensemble of {len(folders)} runs below {os.path.commonpath(folders)}")


def _check_csv(csv: str | None, as_json: bool) -> None:
    """Raise an error for a bad `--csv` before anything is computed, without writing anything."""
    if csv == STANDARD and as_json:
        raise OptionError("--csv - and --json both print to standard output; give --csv a file")
    if csv is None or csv == STANDARD:
        return
    refuse_unwritable(Path(csv))


def _with_listed(names: Sequence[str]) -> list[str]:
    """Return the names, with `-` replaced by the paths on standard input."""
    from taskres_cache.datasets.named_files import listed_names

    if names.count(STANDARD) > 1:
        raise OptionError(f"{STANDARD} is standard input, which can be read only once; pass it once")
    listed = listed_names(sys.stdin.buffer) if STANDARD in names and sys.stdin else []
    return [name for given in names for name in (listed if given == STANDARD else [given])]


def _refuse_missing(found: "FoundImages") -> None:
    """Raise an error if none of the named files exists."""
    from .console import say

    if any(map(os.path.lexists, found.paths)):
        return
    for path in found.paths:
        say(f"skipped {path}: {os.strerror(errno.ENOENT)}")
    raise TaskresError(f"none of the {len(found.paths)} images exists; see above")


def _report_skipped(found: "FoundImages", predicted: "PredictedImages") -> None:
    """Print which inputs have no prediction; raises TaskresError if none has."""
    from .console import say

    for folder in found.empty:
        say(f"note: no image below {folder}")
    for path, reason in predicted.unreadable.items():
        say(f"skipped {path}: {reason}")
    if not len(predicted):
        raise TaskresError(f"none of the {len(predicted.unreadable)} images could be read; see the reasons above")


def _note_black(provenance: "Provenance", predicted: "PredictedImages") -> None:
    """Print a note on images that the run reads with black behind transparent parts, as earlier versions did."""
    from taskres_cache.datasets.images import has_transparency

    from .console import say

    if provenance.preprocess.get("orientation", "exif") != "exif":
        return
    count = sum(has_transparency(Path(path)) for path in predicted.paths)
    if count:
        say(
            f"note: {count} of {len(predicted)} images have transparency, and this run reads transparent parts as "
            "black, like its cache of an earlier version; to read them as white, extract into a new --cache-dir and "
            "fit again"
        )


def _print_json(folders: Sequence[Path], classifiers: "Classifiers", predicted: "PredictedImages") -> None:
    from .console import print_json

    images = [
        {
            "path": path,
            "predictions": [{"class": name, "probability": share} for name, share in zip(names, shares, strict=True)],
        }
        for path, names, shares in predicted
    ]
    described: dict[str, object] = {"run": str(folders[0]), "temperature": classifiers.members[0].temperature}
    if len(folders) > 1:
        described = {"runs": list(map(str, folders)), "temperatures": [one.temperature for one in classifiers.members]}
    described["classnames"] = predicted.classnames
    print_json({**described, "images": images, "unreadable": predicted.unreadable})


def _write_csv(predicted: "PredictedImages", csv: str) -> None:
    """Write one line per image to standard output, or to a file that appears only when complete."""
    from .console import image_count, say

    content = os.fsencode(_as_csv(predicted))
    if csv == STANDARD:
        sys.stdout.buffer.write(content)
        return
    with replaced(Path(csv)) as temporary:
        temporary.write_bytes(content)
    say(f"{csv}: {image_count(len(predicted))}")


def _as_csv(predicted: "PredictedImages") -> str:
    """Return the predictions as comma-separated values: path, class, probability, class_2, probability_2 and so on."""
    ranks = ["", *(f"_{rank}" for rank in range(2, predicted.classes.shape[1] + 1))]
    header = ["path", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))]
    rows: list[list[str | float]] = []
    for path, names, shares in predicted:
        pairs: Iterable[tuple[str, float]] = zip(names, shares, strict=True)
        rows.append([path, *(cell for pair in pairs for cell in pair)])
    return as_csv([header, *rows])


def _print(found: "FoundImages", predicted: "PredictedImages", csv: str | None) -> None:
    """Print few images in detail, many as lines (unless they are in a CSV file) and a summary."""
    from .predict_display import print_details, print_lines, print_summary

    many = bool(found.folders) or len(found.paths) > FEW
    if csv is None:
        (print_lines if many else print_details)(predicted)
    if many:
        print_summary(predicted)
