"""`taskres datasets`: the known data sets, which of them are complete, and their verification."""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import completion
from .help import App
from .options import ImagesRoot, Json, LabelColumn, PathColumn, SplitColumn

if TYPE_CHECKING:
    from taskres_cache.datasets import Counts, Entry, Verification

MOST_FAULTS_SHOWN = 20

datasets = App(invoke_without_command=True)


@datasets.callback()
def list_datasets(context: typer.Context, root: ImagesRoot = None, as_json: Json = False) -> None:
    """List the known data sets and how to get them.

    Any folder or archive with one subfolder of images per class works too, and any list of images and classes, shards
    and tables of images: pass its path to `taskres extract`.

    Example: taskres datasets --root /data
    """
    context.obj = root
    if context.invoked_subcommand is not None:
        return

    from taskres_cache.datasets import ENTRIES
    from taskres_cache.reporting.tables import Table

    from .console import print_json, print_table, show

    root = root or Path(".")
    found = [_described(entry, root) for entry in ENTRIES.values()]
    if as_json:
        print_json(found)
        return
    rows = tuple((facts["name"], "complete" if facts["complete"] else "missing", facts["title"]) for facts in found)
    print_table(Table(f"known data sets below {root}", ("name", "state", "content"), rows, left=3))
    for line in chain.from_iterable(map(_remarks, found)):
        show(line)
    print("Or any folder of images: folder/<class>/*, which is split at random,")
    print("or folder/{train,val,test}/<class>/*; or a CSV, TSV or JSONL list of images and")
    print("classes, an export of Label Studio or in the COCO form, a zip or tar of class folders,")
    print("WebDataset shards ('x-{000..015}.tar'), Parquet or Arrow, or hf:OWNER/NAME")


@datasets.command("verify")
def verify(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A known data set, a folder, or a list.", autocompletion=completion.datasets
        ),
    ],
    root: ImagesRoot = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    as_json: Json = False,
) -> None:
    """Open every listed image of a data set; compare the counts with the published ones.

    Example: taskres datasets verify caltech101 --root /data
    """
    from taskres_cache.datasets import load_dataset, published_counts, verify_dataset

    from .console import print_json, progress, say

    dataset = load_dataset(
        name,
        root or context.obj,  # --root may come before or after `verify`
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
    )
    for note in dataset.notes:
        say(f"note: {note}")
    with progress() as display:
        display.begin(f"images of {dataset.name}", sum(map(len, dataset.partitions.values())), 0)
        result = verify_dataset(dataset, display.advance)
    published = published_counts(name)
    complete = not result.faults and published in (None, result.counts)
    if as_json:
        faults = [{"path": item.path, "listed": item.where, "fault": fault} for item, fault in result.faults.items()]
        expected = None if published is None else asdict(published)
        print_json({"counts": asdict(result.counts), "published": expected, "faults": faults, "complete": complete})
    else:
        _print_verification(dataset.name, result, published)
    if not complete:
        say(f"{dataset.name}: {_faults_found(result, published)}")
        raise typer.Exit(1)


def _described(entry: "Entry", root: Path) -> dict[str, Any]:
    """Return the facts of a known data set as plain values."""
    missing = entry.missing(root)
    return {
        "name": entry.name,
        "title": entry.title,
        "complete": not missing,
        "lacks": list(missing),
        "warnings": [] if missing else list(entry.warnings(root)),
        "steps": list(entry.steps(root)),
        "backbone": asdict(entry.backbone),
    }


def _remarks(facts: dict[str, Any]) -> list[str]:
    """Return what is missing of a data set and how to get it, or its warnings, as lines."""
    if facts["lacks"]:
        return [f"{facts['name']}: missing {', '.join(facts['lacks'])}", *(f"  {step}" for step in facts["steps"])]
    return [f"{facts['name']}: {warning}" for warning in facts["warnings"]]


def _print_verification(name: str, result: "Verification", published: "Counts | None") -> None:
    from taskres_cache.reporting.tables import Table

    from .console import print_table

    found = asdict(result.counts)
    expected = {} if published is None else asdict(published)
    rows = tuple((what, f"{count:,}", _as_published(count, expected.get(what))) for what, count in found.items())
    print_table(Table(name, ("count", "found", "published"), rows))
    _print_faults((f"{item.path}{item.where and f' ({item.where})'}: {fault}") for item, fault in result.faults.items())


def _print_faults(lines: Iterable[str]) -> None:
    faults = list(lines)
    from .console import show

    for line in faults[:MOST_FAULTS_SHOWN]:
        show(line)
    if len(faults) > MOST_FAULTS_SHOWN:
        print(f"and {len(faults) - MOST_FAULTS_SHOWN} more; --json lists all")


def _as_published(count: int, published: int | None) -> str:
    if published is None:
        return "-"
    return f"{published:,}" if count == published else f"{published:,} (differs)"


def _faults_found(result: "Verification", published: "Counts | None") -> str:
    """Return what is wrong and the remedy, as one line."""
    from .console import image_count

    faults = [f"{image_count(len(result.faults))} missing or unreadable"] if result.faults else []
    differ = ["the counts differ from the published ones"] if published not in (None, result.counts) else []
    return "; ".join([*faults, *differ]) + "; unpack the archives again and get the split file (see `taskres datasets`)"
