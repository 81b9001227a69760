"""`taskres predict`: a fitted classifier on new images."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from csv import QUOTE_ALL, QUOTE_MINIMAL
from csv import writer as csv_writer
from dataclasses import replace
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskres_cache.errors import OptionError, StorageError, TaskresError

from .options import BatchSize, Device, Json, Run, Workers

if TYPE_CHECKING:
    from taskres_cache.datasets.named_files import FoundImages
    from taskres_cache.runs.prediction import PredictedImages

STANDARD = "-"  # input or output, in the place of a file
FEW = 20  # images that are each told at length


def predict(
    run: Run,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Image files; folders, for every image below them; - for a list of paths on standard input, one a "
            "line.",
            show_default=False,
        ),
    ],
    top_k: Annotated[int, typer.Option("--top-k", help="Classes to tell of each image, best first.")] = 5,
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv", metavar="FILE", help="Write a CSV file, a line an image; - prints it.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained",
            metavar="PATH",
            help="The checkpoint file, where the run was made with a local one.",
            show_default="the run's tag",
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, bf16, fp16, or auto: the run's own where the device is good at it, else what that is best at."
        ),
    ] = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
) -> None:
    """Tell the best classes of new images, with calibrated probabilities.

    Up to 20 files are told at length. More of them, and folders, get a line each and a summary by class. What cannot
    be read is named and skipped.

    Example: taskres predict runs/RN50-openai/photos new-photos --csv new.csv
    """
    from taskres_cache.datasets.named_files import find_images

    _refuse_unusable(csv, as_json)
    found = find_images(_with_listed(images))

    from taskres_cache.runs.encoder import load_encoder
    from taskres_cache.runs.finding import find_run
    from taskres_cache.runs.prediction import PredictOptions, predict_images  # seconds, for torch
    from taskres_cache.runs.run import read_classifier
    from taskres_cache.system.progress import Silent

    from .console import progress

    options, folder = PredictOptions(top_k, batch_size, workers), find_run(run)
    classifier = read_classifier(folder)
    encoder = load_encoder(classifier, pretrained, device, precision)
    with progress() if len(found.paths) > FEW else nullcontext(Silent()) as heard:
        predicted = predict_images(found.paths, classifier, encoder, options, heard)
    predicted = replace(predicted, unreadable=found.unreadable | predicted.unreadable)
    _tell_skipped(found, predicted)
    if csv is not None:
        _write_csv(predicted, csv)
    if as_json:
        _print_json(folder, classifier.temperature, predicted)
    elif csv != STANDARD:
        _print(found, predicted, csv)


def _refuse_unusable(csv: str | None, as_json: bool) -> None:
    """Raise what can be known of --csv before anything is computed, without leaving anything behind."""
    if csv == STANDARD and as_json:
        raise OptionError("--csv - and --json both print to standard output; give --csv a file")
    if csv is None or csv == STANDARD:
        return
    above = next(folder for folder in Path(csv).absolute().parents if folder.exists())
    if Path(csv).is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise StorageError(f"--csv {csv} cannot be written there; choose another file")


def _with_listed(names: Sequence[str]) -> list[str]:
    """Return the names with the paths on standard input in the place of `-`."""
    from taskres_cache.datasets.named_files import listed_names

    if names.count(STANDARD) > 1:
        raise OptionError(f"{STANDARD} stands for standard input, which can be read once; pass it once")
    listed = listed_names(sys.stdin.buffer) if STANDARD in names and sys.stdin else []
    return [name for given in names for name in (listed if given == STANDARD else [given])]


def _tell_skipped(found: "FoundImages", predicted: "PredictedImages") -> None:
    """Say what was named and is not among the predictions; raises TaskresError when that is everything."""
    from .console import say, shown

    for folder in found.empty:
        say(f"note: no image below {shown(folder)}")
    for path, reason in predicted.unreadable.items():
        say(f"skipped {shown(path)}: {shown(reason)}")
    if not len(predicted):
        raise TaskresError(f"no image could be read, of {len(predicted.unreadable)}; the reasons stand above")


def _print_json(folder: Path, temperature: float, predicted: "PredictedImages") -> None:
    from .console import print_json

    images = [
        {
            "path": path,
            "predictions": [{"class": name, "probability": share} for name, share in zip(names, shares, strict=True)],
        }
        for path, names, shares in predicted
    ]
    described = {"run": str(folder), "temperature": temperature, "classnames": predicted.classnames}
    print_json({**described, "images": images, "unreadable": predicted.unreadable})


def _write_csv(predicted: "PredictedImages", csv: str) -> None:
    """Write a line an image to a file, whole or not at all, or to standard output."""
    from taskres_cache.system.files import replaced

    from .console import counted, say

    content = os.fsencode(_as_csv(predicted))
    if csv == STANDARD:
        sys.stdout.buffer.write(content)
        return
    with replaced(Path(csv)) as temporary:
        temporary.write_bytes(content)
    say(f"{csv}: {counted(len(predicted))}")


def _as_csv(predicted: "PredictedImages") -> str:
    """Return the predictions as comma-separated values: path, class, probability, class_2, probability_2 and so on."""
    ranks = ["", *(f"_{rank}" for rank in range(2, predicted.classes.shape[1] + 1))]
    stream = StringIO()
    # Python's writer does not quote a carriage return by itself, and its reader ends the line there.
    odd = any("\r" in name for name in (*predicted.paths, *predicted.classnames))
    writer = csv_writer(stream, lineterminator="\n", quoting=QUOTE_ALL if odd else QUOTE_MINIMAL)
    writer.writerow(["path", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))])
    for path, names, shares in predicted:
        writer.writerow([path, *chain.from_iterable(zip(names, shares, strict=True))])
    return stream.getvalue()


def _print(found: "FoundImages", predicted: "PredictedImages", csv: str | None) -> None:
    """Print few images at length, of many a line each, unless a file tells of them; and of many a summary."""
    from .predict_display import print_at_length, print_lines, print_summary

    many = bool(found.folders) or len(found.paths) > FEW
    if csv is None:
        (print_lines if many else print_at_length)(predicted)
    if many:
        print_summary(predicted)
