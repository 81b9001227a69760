"""Published accuracies, each with the paper, the table and the setting it comes from."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from taskres_cache.errors import CacheError

FILE = Path(__file__).with_name("published_results.json")


@dataclass(frozen=True)
class Source:
    """Where a result was published: title, address, and the table in it."""

    title: str
    url: str
    where: str


@dataclass(frozen=True)
class PublishedResults:
    """Published accuracies of one method on one data set.

    Parameters
    ----------
    method : str
        Name of the method.
    setting : str
        How it was measured, in a few words.
    dataset : str
        Name of the data set in this library.
    accuracy : dict of int to float
        Shots -> test accuracy in percent; 0 shots is zero-shot.
    source : Source
        Where it was published.
    """

    method: str
    setting: str
    dataset: str
    accuracy: dict[int, float]
    source: Source


def published_results(dataset: str, backbone: str, pretrained: str) -> list[PublishedResults]:
    """Return the published results for a data set and a checkpoint, in the order of the file."""
    wanted = (dataset, backbone, pretrained)
    return [results for key, results in read_published_results(FILE) if key == wanted]


@cache
def read_published_results(file: Path) -> list[tuple[tuple[str, str, str], PublishedResults]]:
    """Read a file of published tables.

    Parameters
    ----------
    file : Path
        JSON with sources and tables.

    Returns
    -------
    list of tuple
        (data set, backbone, tag) and results, per row of each table.

    Raises
    ------
    CacheError
        A table has no source, or not as many numbers as shot counts.
    """
    stored = json.loads(file.read_text(encoding="utf-8"))
    found = []
    for table in stored["tables"]:
        origin = stored["sources"].get(table.get("source"), {})
        if not (origin.get("title") and origin.get("url") and table.get("where")):
            raise CacheError(f"{file}: a table of {table['method']!r} needs source, title, url and where; add them")
        source = Source(origin["title"], origin["url"], table["where"])
        for dataset, numbers in table["accuracy"].items():
            if len(numbers) != len(table["shots"]):
                raise CacheError(f"{file}: {dataset} has {len(numbers)} numbers, expected {len(table['shots'])}")
            accuracy = dict(zip(table["shots"], numbers, strict=True))
            results = PublishedResults(table["method"], table["setting"], dataset, accuracy, source)
            found.append(((dataset, table["backbone"], table["pretrained"]), results))
    return found
