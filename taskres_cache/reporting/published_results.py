"""Accuracies that others have published, as data: no number without the paper, the table and the setting it is from."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from taskres_cache.errors import CacheError

FILE = Path(__file__).with_name("published_figures.json")


@dataclass(frozen=True)
class Source:
    """Where a figure was published: title, address, and the table in it."""

    title: str
    url: str
    where: str


@dataclass(frozen=True)
class Figures:
    """What a published table says of one method on one data set.

    Parameters
    ----------
    method, setting : what was measured, and how, in a few words.
    dataset : that it was tested on, by our name.
    accuracy : shots -> percent; 0 shots are zero-shot.
    source : where it stands.
    """

    method: str
    setting: str
    dataset: str
    accuracy: dict[int, float]
    source: Source


def published_figures(dataset: str, backbone: str, pretrained: str) -> list[Figures]:
    """Return what is known to be published of a data set and a checkpoint, in the order of the file; often nothing."""
    wanted = (dataset, backbone, pretrained)
    return [figures for key, figures in read_figures(FILE) if key == wanted]


@cache
def read_figures(file: Path) -> list[tuple[tuple[str, str, str], Figures]]:
    """Return (data set, backbone, tag) and figures of every row of a file of published tables.

    Raises
    ------
    CacheError : a table without a source, or with more or fewer numbers than shot counts.
    """
    stored = json.loads(file.read_text(encoding="utf-8"))
    found = []
    for table in stored["tables"]:
        said = stored["sources"].get(table.get("source"), {})
        if not (said.get("title") and said.get("url") and table.get("where")):
            raise CacheError(f"{file}: a table of {table['method']!r} lacks its source, title, url or where; add it")
        source = Source(said["title"], said["url"], table["where"])
        for dataset, numbers in table["accuracy"].items():
            if len(numbers) != len(table["shots"]):
                raise CacheError(f"{file}: {dataset} has {len(numbers)} numbers, expected {len(table['shots'])}")
            accuracy = dict(zip(table["shots"], numbers, strict=True))
            figures = Figures(table["method"], table["setting"], dataset, accuracy, source)
            found.append(((dataset, table["backbone"], table["pretrained"]), figures))
    return found
