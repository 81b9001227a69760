"""Options that several commands share, and how lists of numbers are written."""

from pathlib import Path
from typing import Annotated

import typer

from taskres_cache.errors import OptionError

from . import completion

DEVICES = ("auto", "cpu", "cuda", "mps")
HALVES = ("all", "base", "new")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="A known data set, or a folder with one folder of images a class.",
        autocompletion=completion.datasets,
    ),
]
Cache = Annotated[
    str,
    typer.Argument(
        metavar="CACHE", help="A cache file, or the name of a cached data set.", autocompletion=completion.caches
    ),
]
Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder that `taskres fit` left.", autocompletion=completion.runs),
]
CacheDir = Annotated[Path, typer.Option("--cache-dir", help="Where caches live.")]
Root = Annotated[Path, typer.Option("--root", help="Folder that the known data sets lie in.")]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.", autocompletion=completion.one_of(*DEVICES)),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output and nothing else there.")]
Shots = Annotated[str, typer.Option("--shots", help="Images a class, such as 16 or 1,2,4,8,16.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Seeds of the few-shot draw, such as 1 or 1,2,3.")]
Classes = Annotated[
    str,
    typer.Option(
        "--classes",
        help="all, base (the first half) or new (the others).",
        autocompletion=completion.one_of(*HALVES),
    ),
]
Templates = Annotated[
    str | None,
    typer.Option(
        "--templates",
        help="Prompts: a text file with one on each line, imagenet-80 or imagenet-7.",
        show_default="the data set's own",
        autocompletion=completion.ensembles,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Any open_clip model.",
        show_default="RN50; glyph-clip for digits",
        autocompletion=completion.backbones,
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        "--pretrained",
        help="A tag of the model, or a local checkpoint file.",
        show_default="openai; bundled for digits",
        autocompletion=completion.one_of("openai", "bundled"),
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Where runs are left.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fp32, bf16, fp16, or auto: the cache's own, else the fastest that the device is good at.",
        autocompletion=completion.one_of(*PRECISIONS),
    ),
]
Views = Annotated[int, typer.Option("--views", help="Augmented views of each train image, beside the image itself.")]
ViewsSeed = Annotated[int, typer.Option("--views-seed", help="Seed of the augmented views.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images a batch.", show_default="by device")]
Workers = Annotated[int | None, typer.Option("--workers", help="Decoding processes.", show_default="by device")]

PAPER_SHOTS = "1,2,4,8,16"
PAPER_SEEDS = "1,2,3"


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Return whole numbers written with commas, doubles dropped; raises OptionError for anything else."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise OptionError(f"{option} {text!r}: expected whole numbers with commas, such as 1,2,4") from None


def decimals(option: str, text: str) -> tuple[float, ...]:
    """Return numbers written with commas, doubles dropped; raises OptionError for anything else."""
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise OptionError(f"{option} {text!r}: expected numbers with commas, such as 0.5,1") from None
