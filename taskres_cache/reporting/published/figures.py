"""Published accuracies, read at their sources: which method, on what, by whom, and what was chosen on test images.

Three tables: `figures.csv` holds the accuracies, `sources.csv` where each was published and in which setting, and
`notes.csv` what is known of a source's choices, per method and data set (`*` is any; the first row that fits counts).
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar, get_args

from taskres_cache.errors import CacheError, UnknownNameError

FOLDER = Path(__file__).parent
REPOSITORY = re.compile(r"^([\w.-]+/[\w.-]+)(?: \(|$)")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
ANY = "*"

ChoseOnTest = Literal["no", "yes", "unknown"]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Source:
    """Where figures were published.

    Parameters
    ----------
    key : str
        Short name, such as "S15".
    title : str
        Repository or paper.
    where : str
        Table, or file and commit.
    setting : str
        How the figures were measured, as far as the source says.
    """

    key: str
    title: str
    where: str
    setting: str

    @property
    def url(self) -> str:
        """Address of the repository or preprint that the title names; empty if it names none."""
        repository, preprint = REPOSITORY.search(self.title), ARXIV.search(self.title)
        if repository is not None:
            return f"https://github.com/{repository[1]}"
        return f"https://arxiv.org/abs/{preprint[1]}" if preprint is not None else ""


@dataclass(frozen=True)
class Figure:
    """One published test accuracy.

    Parameters
    ----------
    method, backbone : str
        As published.
    dataset : str
        Name of the data set in this library.
    shots : int
        Training images per class; 0 is zero-shot.
    accuracy : float
        In percent.
    source : Source
        Where it was published.
    chose_on_test : {"no", "yes", "unknown"}
        Whether an epoch or hyper-parameter was chosen by the accuracy on these test images.
    by_others : bool
        True if the figure is a re-run by others than the authors of the method.
    note : str
        What was chosen how, or how a re-run differs.
    """

    method: str
    backbone: str
    dataset: str
    shots: int
    accuracy: float
    source: Source
    chose_on_test: ChoseOnTest = "no"
    by_others: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        """The method, and whether others ran it."""
        return f"{self.method} (by others)" if self.by_others else self.method


@dataclass(frozen=True)
class _Note:
    """A row of `notes.csv`."""

    source: str
    method: str
    dataset: str
    chose_on_test: ChoseOnTest
    by_others: bool
    note: str

    def fits(self, row: dict[str, str]) -> bool:
        """Return True if the note is about a row of `figures.csv`."""
        own = (self.source, self.method, self.dataset)
        other = (row["source"], row["method"], row["dataset"])
        return all(mine in (ANY, its) for mine, its in zip(own, other, strict=True))


@cache
def read_figures(folder: Path = FOLDER) -> tuple[Figure, ...]:
    """Return all published figures, in the order of the file.

    Parameters
    ----------
    folder : Path, optional
        Folder of the three tables. Defaults to the tables of this package.

    Raises
    ------
    CacheError
        A figure has no source, or a cell is not what its column needs.
    """
    sources = {one.key: one for one in _read(folder / "sources.csv", _source_of)}
    notes = _read(folder / "notes.csv", _note_of)
    return tuple(_read(folder / "figures.csv", lambda row: _figure_of(row, sources, notes)))


def select(
    figures: Sequence[Figure], dataset: str = "", method: str = "", backbone: str = "", shots: Sequence[int] = ()
) -> list[Figure]:
    """Return the figures of a data set, method, backbone and shot counts; an empty choice takes all.

    Parameters
    ----------
    figures : sequence of Figure
        Where to select from.
    dataset, method, backbone : str, optional
        Names as published or as in this library, in upper or lower case.
    shots : sequence of int, optional
        Shot counts; 0 is zero-shot.

    Raises
    ------
    UnknownNameError
        No figure has the data set, method or backbone.
    """
    chosen = list(figures)
    choices: tuple[tuple[str, str, Callable[[Figure], str]], ...] = (
        ("data set", dataset, lambda one: one.dataset),
        ("method", published_method(method) or method, lambda one: one.method),
        ("backbone", backbone, lambda one: one.backbone),
    )
    for kind, wanted, name_of in choices:
        names = list(dict.fromkeys(map(name_of, figures)))
        if wanted and _plain(wanted) not in map(_plain, names):
            raise UnknownNameError(kind, wanted, names, f"published are: {', '.join(names)}")
        chosen = [one for one in chosen if not wanted or _plain(name_of(one)) == _plain(wanted)]
    return [one for one in chosen if not shots or one.shots in shots]


# The library's names of methods; variants and methods that it does not have are not compared.
PUBLISHED_AS = {
    "zero-shot": "zero-shot CLIP",
    "taskres": "TaskRes",
    "linear-probe": "linear probe",
    "tip-adapter": "Tip-Adapter",
    "tip-adapter-f": "Tip-Adapter-F",
    "clip-adapter": "CLIP-Adapter",
    "lp++": "LP++",
    "gda": "GDA",
    "prolip": "ProLIP",
    "p0": "P0 (TextCoord)",
    "proker": "ProKeR",
    "timo": "TIMO",
    "ape-t": "APE-T",
}


def published_method(method: str) -> str | None:
    """Return the published name of a method of this library, which may have options in its name; None for others.

    Of task residuals, only those on the text side of the regular base are the published method.
    """
    if "@" in method:  # another set of prompts than the cache's templates
        return None
    family = max((name for name in PUBLISHED_AS if f"{method}-".startswith(f"{name}-")), key=len, default=None)
    if family is None:
        return None
    other = family == "taskres" and (not f"{method}-".startswith("taskres-regular-") or "-residual" in method)
    return None if other and method != "taskres" else PUBLISHED_AS[family]


def published_backbone(backbone: str, pretrained: str) -> str | None:
    """Return the published name of a checkpoint; None if it is none of OpenAI's, which all compared figures are of."""
    return backbone.removesuffix("-quickgelu").replace("ViT-B-", "ViT-B/") if pretrained == "openai" else None


def _plain(name: str) -> str:
    return name.lower().replace("/", "-")


def _read(file: Path, parse: Callable[[dict[str, str]], Row]) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = []
    for line, row in enumerate(rows, start=2):
        try:
            found.append(parse(row))
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(
                f"{file}, line {line}: {error}; restore the file by installing taskres-cache again"
            ) from error
    return found


def _source_of(row: dict[str, str]) -> Source:
    return Source(row["source"], row["title"], row["where"], row["setting"])


def _note_of(row: dict[str, str]) -> _Note:
    if row["chose_on_test"] not in get_args(ChoseOnTest) or row["by_others"] not in ("yes", "no"):
        raise ValueError(f"expected yes, no or unknown, found {row['chose_on_test']!r} and {row['by_others']!r}")
    chose: ChoseOnTest = row["chose_on_test"]  # type: ignore[assignment]  # checked above
    return _Note(row["source"], row["method"], row["dataset"], chose, row["by_others"] == "yes", row["note"])


def _figure_of(row: dict[str, str], sources: dict[str, Source], notes: Sequence[_Note]) -> Figure:
    accuracy = float(row["accuracy"])
    if row["source"] not in sources:
        raise ValueError(f"source {row['source']!r} is not in sources.csv")
    if not 0 <= accuracy <= 100:
        raise ValueError(f"accuracy {accuracy} is not in percent")
    what = row["method"], row["backbone"], row["dataset"], int(row["shots"]), accuracy, sources[row["source"]]
    note = next((one for one in notes if one.fits(row)), None)
    return Figure(*what) if note is None else Figure(*what, note.chose_on_test, note.by_others, note.note)
