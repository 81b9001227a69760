"""Rows of a list become a data set: every row is used, counted, or refused with its place."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.lists.columns import Columns
from taskres_cache.datasets.forms.lists.tables import Table
from taskres_cache.datasets.forms.rows import Row, dataset_of_rows
from taskres_cache.datasets.images import IMAGE_SUFFIXES, ImageSource
from taskres_cache.datasets.survey import kind_of_file, unused_note
from taskres_cache.errors import DatasetError
from taskres_cache.system.names import shown

WHOLE_NUMBER = re.compile(r"[0-9]+\.0+")  # pandas writes whole numbers so if a value of the column is missing
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL and half characters, which HDF5 cannot store
LONGEST_CLASSNAME = 1000  # characters; a model reads 77 tokens


class Listed(NamedTuple):
    """A row as the list has it: the image, its class and part, and where."""

    path: str
    label: object
    split: object
    where: str


def listed_in(table: Table, columns: Columns) -> Iterator[Listed]:
    """Yield the rows of a table."""
    for place, record in table.records():
        where = f"{table.title}, {place}"
        split = None if columns.split is None else record.get(columns.split)
        yield Listed(text_of(record.get(columns.path), columns.path, where), record.get(columns.label), split, where)


def text_of(value: object, column: str, where: str) -> str:
    """Return a cell as text: empty for null, whole numbers without decimals.

    Raises
    ------
    DatasetError
        The cell is a list or object, or is not text that a cache can store.
    """
    if getattr(value, "shape", None) == ():  # a scalar of NumPy or torch
        value = value.item()  # type: ignore[attr-defined]
    if is_missing(value):
        return ""
    if isinstance(value, dict | list | tuple | bytes):
        raise DatasetError(f"{where}: {column!r} is a {type(value).__name__}, expected text or a number; fix the row")
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    if NOT_TEXT.search(text):
        raise DatasetError(f"{where}: {column!r} is {shown(text)}, which is not text; fix the row")
    return text


def is_missing(value: object) -> bool:
    """Return True for null, NaN, and pandas' NA, which has no truth value."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return True


def not_used(thing: str, others: Counter[str]) -> tuple[str, ...]:
    """Return one line that counts what is not used by reason, or nothing."""
    if not others:
        return ()
    things = thing if others.total() == 1 else f"{thing}s"
    return (f"{others.total()} {things} not used: {', '.join(f'{n} {reason}' for reason, n in others.most_common())}",)


@dataclass
class Gathering:
    """Rows while they are read.

    Parameters
    ----------
    title : str
        The list, for messages.
    """

    title: str

    def __post_init__(self) -> None:
        self.known: dict[str, Row] = {}
        self.others: Counter[str] = Counter()
        self.repeated = 0

    def add(self, listed: Listed, path: str) -> None:
        """Add a row with its path in the source; raises DatasetError if it has no class or contradicts another."""
        classname = text_of(listed.label, "label", listed.where).strip()
        if not classname:
            raise DatasetError(f"{listed.where}: no class, expected its name; fill it in, or remove the row")
        if len(classname) > LONGEST_CLASSNAME:
            raise DatasetError(f"{listed.where}: {shown(classname)} is too long for the name of a class; fix the row")
        if os.path.splitext(path)[1].lower() not in IMAGE_SUFFIXES | {""}:
            self.others[kind_of_file(path)] += 1
            return
        row = Row(path, classname, text_of(listed.split, "split", listed.where).strip(), listed.where)
        first = self.known.setdefault(path, row)
        if first is not row:
            self._repeat(first, row)

    def _repeat(self, first: Row, row: Row) -> None:
        if first[:3] != row[:3]:
            which = "class" if first.classname != row.classname else "split"
            values = (getattr(one, "classname" if which == "class" else "split") for one in (first, row))
            raise DatasetError(
                f"{row.where}: {shown(row.path)} has {which} {' and '.join(map(shown, values))} (first in "
                f"{first.where}), expected one; fix the list"
            )
        self.repeated += 1

    def dataset(self, source: ImageSource, name: str, split_seed: int, notes: Sequence[str] = ()) -> Dataset:
        """Return the data set of the rows so far; raises DatasetError if there is none."""
        counted = [*notes, *unused_note(self.others)]
        if not self.known:
            found = "; ".join([f"{self.title} lists no image", *counted])
            raise DatasetError(f"{found}; add rows of an image and its class")
        if self.repeated:
            rows = "1 row repeats" if self.repeated == 1 else f"{self.repeated} rows repeat"
            counted.append(f"{rows} an image of another row; each image is used once")
        return dataset_of_rows(source, name, _whole_numbers(self.known.values()), split_seed, counted)


def _whole_numbers(rows: Iterable[Row]) -> list[Row]:
    """Return rows with `3.0` as `3`, if all classes are such numbers."""
    found = list(rows)
    if not found or not all(WHOLE_NUMBER.fullmatch(row.classname) for row in found):
        return found
    return [row._replace(classname=row.classname.partition(".")[0]) for row in found]
