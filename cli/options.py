"""Options that several commands share, and how lists of numbers are parsed.

Choices are repeated here where their module would load torch or numpy for `--help`; a test compares them.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from taskres_cache.errors import OptionError

from . import checks, completion

HALVES = ("all", "base", "new")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PAPER_SHOTS = "1,2,4,8,16"
PAPER_SEEDS = "1,2,3"
LIST = "LIST"  # several values, separated by commas or in repeated options

DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="A known data set, a folder or archive with one subfolder of images per class, a list of images and "
        "labels, WebDataset shards, a table of images, or hf:OWNER/NAME.",
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
    typer.Argument(metavar="RUN", help="A run folder, written by `taskres fit`.", autocompletion=completion.runs),
]
Runs = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run folder, written by `taskres fit`; with --best or --ensemble, a folder of runs.",
        autocompletion=completion.runs,
    ),
]
Best = Annotated[
    bool,
    typer.Option("--best", help="Of the runs below RUN, use the one with the best validation accuracy."),
]
Ensemble = Annotated[bool, typer.Option("--ensemble", help="Average the probabilities of all runs below RUN.")]
RunCheckpoint = Annotated[
    str | None,
    typer.Option(
        "--pretrained",
        metavar="PATH",
        callback=checks.checkpoint_path,
        help="The checkpoint file, if the run was made with a local one.",
        show_default="the run's tag",
    ),
]
RunPrecision = Annotated[
    str,
    typer.Option(
        "--precision",
        callback=checks.one_of(*PRECISIONS),
        help="fp32, bf16, fp16, or auto: that of the run if it suits the device, else the fastest that does.",
    ),
]
DEFAULT_CACHE_DIR = Path("cache")
CACHE_DIR_VARIABLE = "TASKRES_CACHE_DIR"
CacheDir = Annotated[
    Path,
    typer.Option("--cache-dir", envvar=CACHE_DIR_VARIABLE, callback=checks.folder, help="Folder of the caches."),
]
Out = Annotated[Path, typer.Option("--out", callback=checks.folder, help="Folder of the runs.")]
Root = Annotated[Path, typer.Option("--root", help="Folder that contains the known data sets.")]
ImagesRoot = Annotated[
    Path | None,
    typer.Option(
        "--root",
        help="Folder that contains the known data sets; of a list, the folder of its images.",
        show_default="the current folder; a list's own",
    ),
]
PathColumn = Annotated[
    str | None,
    typer.Option(
        "--path-column", metavar="NAME", help="Column of a list with the images.", show_default="by usual names"
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column", metavar="NAME", help="Column of a list with the classes.", show_default="by usual names"
    ),
]
SplitColumn = Annotated[
    str | None,
    typer.Option(
        "--split-column",
        metavar="NAME",
        help="Column of a list with train, val or test; '' for none.",
        show_default="by usual names",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        callback=checks.device,
        help="auto, cpu, cuda, cuda:1 or mps.",
        autocompletion=completion.one_of(*checks.DEVICES),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output, nothing else.")]
Shots = Annotated[
    list[str] | None,
    typer.Option(
        "--shots",
        metavar=LIST,
        help="Training images per class, such as 16, 1-16 (1,2,4,8,16) or all.",
        show_default=PAPER_SHOTS,
    ),
]
Seeds = Annotated[
    list[str] | None,
    typer.Option(
        "--seeds",
        metavar=LIST,
        help="Seeds of the few-shot split, such as 1 or 1-3.",
        show_default=PAPER_SEEDS,
    ),
]
ValPerClass = Annotated[
    str | None,
    typer.Option(
        "--val",
        metavar="N|all",
        help="Validation images per class at K shots: min(K, N), or min(K, all).",
        show_default="4; all for your own data; what an existing cache has",
    ),
]
Classes = Annotated[
    str,
    typer.Option(
        "--classes",
        callback=checks.one_of(*HALVES),
        help="Classes: all, base (first half) or new (second half).",
        autocompletion=completion.one_of(*HALVES),
    ),
]
Templates = Annotated[
    str | None,
    typer.Option(
        "--templates",
        help="Prompts: a text file with one per line, imagenet-80 or imagenet-7.",
        show_default="the data set's prompts",
        autocompletion=completion.ensembles,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="An open_clip model, hf-hub:OWNER/MODEL or local-dir:FOLDER.",
        show_default="RN50; glyph-clip for digits",
        autocompletion=completion.backbones,
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        "--pretrained",
        help="A pretrained tag of the model, or a checkpoint file.",
        show_default="openai, else the model's last tag; bundled for glyph-clip",
        autocompletion=completion.one_of("openai", "bundled"),
    ),
]
PretrainedLike = Annotated[
    str | None,
    typer.Option(
        "--pretrained-like",
        metavar="TAG",
        help="Use a checkpoint file with the preprocessing and activation of this tag.",
        show_default="as open_clip_config.json next to it, else those of the model's tags",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        callback=checks.one_of(*PRECISIONS),
        help="fp32, bf16, fp16, or auto: that of an existing cache, else the fastest that suits the device.",
        autocompletion=completion.one_of(*PRECISIONS),
    ),
]
Views = Annotated[
    int,
    typer.Option(
        "--views",
        callback=checks.at_least(0),
        help="Augmented views of each training image, in addition to the image itself.",
    ),
]
FAMILIES = ("wide", "narrow")
ViewFamily = Annotated[
    str,
    typer.Option(
        "--view-family",
        callback=checks.one_of(*FAMILIES),
        help="Crops of --views: wide (0.08-1 of the area, as TaskRes) or narrow (0.5-1, as Tip-Adapter and LP++).",
        autocompletion=completion.one_of(*FAMILIES),
    ),
]
PRE_PROJECTIONS = ("none", "images", "all")
PreProjection = Annotated[
    str | None,
    typer.Option(
        "--pre-projection",
        callback=checks.one_of(*PRE_PROJECTIONS),
        help="Store the inputs of the image tower's last projection: none, images, or all (views too).",
        show_default="images; what an existing cache has",
        autocompletion=completion.one_of(*PRE_PROJECTIONS),
    ),
]
ViewsSeed = Annotated[int, typer.Option("--views-seed", help="Seed of the augmented views.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", callback=checks.at_least(1), help="Batch size.", show_default="by device")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", callback=checks.at_least(0), help="Image decoding processes.", show_default="by device"),
]


MOST_OF_A_RANGE = 1000
RANGE = re.compile(r"(\d+)-(\d+)")


def split_numbers(shots: Sequence[str] | None, seeds: Sequence[str] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return `--shots` and `--seeds` as numbers, by default the paper's."""
    return shot_counts(joined(shots, PAPER_SHOTS)), seed_numbers(joined(seeds, PAPER_SEEDS))


def shot_counts(text: str, option: str = "--shots") -> tuple[int, ...]:
    """Return comma-separated shot counts without duplicates: numbers, `all`, and `1-16` for 1, 2, 4, 8, 16."""
    from taskres_cache.datasets.sampling import ALL, ALL_SHOTS

    expected = "expected numbers, all, or a range of powers of two, such as 1,2,4 or 1-16,all"
    found: list[int] = []
    for part in (one.strip() for one in text.split(",")):
        ends = _range_ends(part)
        if ends and (0 in ends or any(end & (end - 1) for end in ends) or ends[0] > ends[1]):
            raise OptionError(f"{option} {part!r}: a range goes up from a power of two to another; {expected}")
        if ends:
            found += [1 << power for power in range(ends[0].bit_length() - 1, ends[1].bit_length())]
        else:
            found.append(ALL_SHOTS if part == ALL else _integer(option, part, expected))
    return tuple(dict.fromkeys(found))


def seed_numbers(text: str) -> tuple[int, ...]:
    """Return comma-separated seeds without duplicates: numbers, and `1-3` for 1, 2, 3."""
    expected = "expected comma-separated integers or ranges, such as 1,2,3 or 1-10"
    found: list[int] = []
    for part in (one.strip() for one in text.split(",")):
        ends = _range_ends(part)
        if ends and not 0 <= ends[1] - ends[0] < MOST_OF_A_RANGE:
            raise OptionError(f"--seeds {part!r}: a range goes up, by at most {MOST_OF_A_RANGE} seeds; {expected}")
        found += range(ends[0], ends[1] + 1) if ends else [_integer("--seeds", part, expected)]
    return tuple(dict.fromkeys(found))


def _range_ends(part: str) -> tuple[int, int] | None:
    """Return the ends of a range such as `1-16`; None for anything else."""
    matched = RANGE.fullmatch(part)
    return None if matched is None else (int(matched[1]), int(matched[2]))


def _integer(option: str, part: str, expected: str) -> int:
    """Return a number; raises OptionError for anything else."""
    try:
        return int(part)
    except ValueError:
        raise OptionError(f"{option} {part!r}: {expected}") from None


def asked_splits(
    shots: Sequence[str] | None, seeds: Sequence[str] | None, val: str | None
) -> tuple[tuple[int, ...] | None, tuple[int, ...], int | None]:
    """Return `--shots`, `--seeds` and `--val` of a command that makes a cache; None stands for the cache's defaults."""
    counts = shot_counts(joined(shots)) if shots else None
    val_per_class = None if val is None else shot_counts(val, "--val")
    draws = seed_numbers(joined(seeds, PAPER_SEEDS))
    checks.splits(counts or (1,), draws)
    if val_per_class is not None and (len(val_per_class) > 1 or val_per_class[0] < 1):
        raise OptionError(f"--val {val!r}: expected one positive number, or all")
    return counts, draws, val_per_class[0] if val_per_class else None


def joined(values: Sequence[str] | None, default: str = "") -> str:
    """Return the values of a repeated option as one comma-separated list, or the default if it was not given."""
    return ",".join(dict.fromkeys(values)) if values else default


def decimals(option: str, text: str) -> tuple[float, ...]:
    """Return comma-separated numbers without duplicates; raises OptionError for anything else."""
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise OptionError(f"{option} {text!r}: expected comma-separated numbers, such as 0.5,1") from None


def repeated_cache_dir(cache_dir: Path) -> list[str | Path]:
    """Return the words with which another command finds the same caches; none for the default folder."""
    default = Path(os.environ.get(CACHE_DIR_VARIABLE) or DEFAULT_CACHE_DIR)
    return [] if cache_dir == default else ["--cache-dir", cache_dir]
