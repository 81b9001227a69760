"""`taskres backbones`: the models and weights of open_clip, and which of them suits a user's images."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskres_cache.errors import OptionError, TaskresError

from . import checks, completion
from .options import LIST, BatchSize, Device, ImagesRoot, Json, Precision, Templates, Workers, joined

if TYPE_CHECKING:
    from taskres_cache.choosing.sample import Sample
    from taskres_cache.choosing.trial import Failed, Tried

MILLION = 1e6


def backbones(
    word: Annotated[
        str,
        typer.Argument(metavar="WORD", help="Show models and tags that contain this word.", show_default=False),
    ] = "",
    here: Annotated[bool, typer.Option("--here", help="Show only weights that are on this machine.")] = False,
    photos: Annotated[
        str | None,
        typer.Option(
            "--try",
            metavar="DATASET",
            help="Rank --models on a small sample of this data set or folder.",
            show_default=False,
            autocompletion=completion.datasets,
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--models",
            metavar=LIST,
            help="With --try: MODEL, MODEL:TAG or MODEL:FILE, hf-hub:OWNER/MODEL, local-dir:FOLDER.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", callback=checks.at_least(1), help="With --try: about as many images in all.")
    ] = 500,
    templates: Templates = None,
    root: ImagesRoot = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """List open_clip's models and weights, or rank some of them on your images.

    --try encodes a small sample without test images, the same for each model, and ranks the models by five-fold
    cross-validated accuracy: zero-shot plus Gaussian discriminant analysis, which any features support.

    Example: taskres backbones --try photos --models RN50,ViT-B-16
    """
    if photos is None:
        if models:
            raise OptionError("--models is for --try; pass --try DATASET, or a word to list models")
        _list(word, here, as_json)
        return
    if word or here or not models:
        raise OptionError("--try DATASET goes together with --models, and without WORD and --here")
    _try(photos, root, joined(models).split(","), images, templates, (device, precision, batch_size, workers), as_json)


def _list(word: str, here: bool, as_json: bool) -> None:
    from taskres_cache.encoders.checkpoint_list import list_checkpoints  # seconds, for open_clip
    from taskres_cache.reporting.tables import Table

    from .console import print_json, print_table

    found = [one for one in list_checkpoints(word) if one.is_here or not here]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        where = " on this machine" if here else ""
        raise OptionError(f"open_clip has no model or tag with {word!r}{where}; run: taskres backbones")
    columns = ("model", "tag", "here", "embedding", "image", "image tower", "all")
    rows = tuple(
        (
            one.model,
            one.tag,
            "yes" if one.is_here else "no",
            str(one.dim),
            str(one.image_size),
            _millions(one.image_parameters),
            _millions(one.parameters),
        )
        for one in found
    )
    print_table(Table("models and tags of open_clip (image side in pixels, million parameters)", columns, rows, left=3))


def _millions(parameters: int | None) -> str:
    return "-" if parameters is None else f"{parameters / MILLION:.1f}"


def _try(
    photos: str,
    root: Path | None,
    models: Sequence[str],
    images: int,
    templates: str | None,
    encoding: tuple[str, str, int | None, int | None],
    as_json: bool,
) -> None:
    """Rank models on a sample of a data set; those that cannot be loaded are one line each."""
    from dataclasses import replace

    from taskres_cache.choosing.sample import stratified_sample
    from taskres_cache.datasets import load_dataset
    from taskres_cache.datasets.prompts import read_templates

    dataset = load_dataset(photos, root)
    dataset = dataset if templates is None else replace(dataset, templates=read_templates(templates))
    sample = stratified_sample(dataset, images)

    from taskres_cache.choosing.trial import Tried, ranked, try_models
    from taskres_cache.encoders.encoding import EncodingOptions

    from .console import print_json, progress, say

    device, precision, batch_size, workers = encoding
    options = EncodingOptions(batch_size=batch_size, workers=workers)
    with progress() as display:
        results = list(try_models(models, dataset, sample, device, precision, options, display))
    tried = ranked([one for one in results if isinstance(one, Tried)])
    failed = [one for one in results if not isinstance(one, Tried)]
    for one in failed:
        say(f"{one.model}: {one.reason}")
    if not tried:
        raise TaskresError(f"none of the {len(failed)} models could be tried; see above")
    for path, reason in tried[0].unreadable.items():
        say(f"skipped {path}: {reason}")
    if as_json:
        print_json(_as_json(dataset.name, sample, tried, failed))
    else:
        _print(dataset.name, len(dataset.classnames), sample, tried)


def _as_json(dataset: str, sample: "Sample", tried: "Sequence[Tried]", failed: "Sequence[Failed]") -> dict[str, Any]:
    ranking = [
        {
            "model": one.name,
            "tag": one.pretrained,
            "dim": one.dim,
            "zero_shot_accuracy": one.zero_shot_accuracy,
            "accuracy": one.accuracy,
            "interval": one.interval,
            "difference_to_best": one.behind(tried[0])[0],
            "difference_interval": [one.behind(tried[0])[0] + sign * one.behind(tried[0])[1] for sign in (-1, 1)],
            "images_per_second": one.images_per_second,
        }
        for one in tried
    ]
    counts = {"images": tried[0].images, "classes": len(sample.classnames)}
    return {"dataset": dataset, **counts, "ranking": ranking, "failed": [asdict(one) for one in failed]}


def _print(dataset: str, classes: int, sample: "Sample", tried: "Sequence[Tried]") -> None:
    from taskres_cache.reporting.tables import Table, percent, signed

    from .console import print_table

    of_all = f"{len(sample.classnames)} of {classes}" if len(sample.classnames) < classes else str(classes)
    columns = ("model", "tag", "zero-shot", "accuracy", "95 % interval", "to the best", "embedding", "images/s")
    rows = []
    for one in tried:
        (low, high), (difference, half) = one.interval, one.behind(tried[0])
        to_best = "" if one is tried[0] else f"{signed(difference)} ± {percent(half)}"
        rates = (percent(one.zero_shot_accuracy), percent(one.accuracy), f"{low:.1f} to {high:.1f}", to_best)
        rows.append((one.name, one.pretrained, *rates, str(one.dim), f"{one.images_per_second:.0f}"))
    title = f"{dataset}: {tried[0].images} images, {of_all} classes, five-fold cross-validated accuracy"
    print_table(Table(title, columns, tuple(rows), left=2))
