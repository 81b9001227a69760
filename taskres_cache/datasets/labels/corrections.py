"""Corrections of labels: a list of images with other labels or parts, applied to a data set; no image file is touched.

Axes: C classes.
"""

import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from taskres_cache.datasets.class_names import listed
from taskres_cache.datasets.dataset import PARTITIONS, Dataset, Item
from taskres_cache.datasets.folder import PARTITION_NAMES
from taskres_cache.datasets.labels.changes import Change, Corrections
from taskres_cache.datasets.registry import is_named
from taskres_cache.errors import DatasetError, OptionError, near_matches

LEFT_OUT = ("", "-")  # labels of images to leave out
PATH_COLUMNS = ("path", "image", "file", "filename", "filepath")
LABEL_COLUMNS = ("label", "class", "classname", "class_name", "category")
PART_COLUMNS = ("part", "split", "partition", "subset")
MOST_COMPARED = 20_000  # paths among which the nearest is looked for


class _Row(NamedTuple):
    """One row of a file: a label in `LEFT_OUT` leaves the image out, an empty part keeps its part."""

    path: str
    label: str
    part: str
    where: str


def corrected(dataset: Dataset, files: Sequence[str | Path], earlier: Corrections | None = None) -> Dataset:
    """Return a data set with corrected labels.

    An image keeps its place in the list of its part, unless a row moves it. New class names come after the others;
    classes without any image are dropped.

    Parameters
    ----------
    dataset : Dataset
        The data set as it was read, in any form but not known by name.
    files : sequence of str or Path
        CSV files with the columns `path` and `label`, in any order; or with two columns and no header. An empty label
        or `-` leaves the image out. A column `part` or `split` moves it. Other columns are ignored. A later file
        overrides an earlier one.
    earlier : Corrections, optional
        Corrections that come before those of the files, such as those of a cache. Images that no longer exist are
        skipped.

    Raises
    ------
    OptionError
        The data set is known by name: its labels stay as they are published.
    DatasetError
        A file cannot be read or has no such columns, a path is unknown, an image has two labels, a part has an unknown
        name, or a class is left without train images.
    """
    if is_named(dataset.name):
        raise OptionError(
            f"--labels is for your own data; {dataset.name!r} keeps its published labels. Copy its images to a folder"
        )
    earlier = earlier or Corrections()
    parts = {item.path: part for part, items in dataset.partitions.items() for item in items}
    rows = {one.path: _row_of(one) for one in earlier.changes if one.path in parts}
    digests = dict(earlier.files)
    for file in map(Path, files):
        found, digest = _rows_of(file)
        digests[file.name if file.name not in digests else str(file)] = digest
        rows |= _by_path(dataset, found, parts)
    wanted = {path: _wanted(row, parts[path]) for path, row in rows.items()}
    return _applied(dataset, wanted, tuple(digests.items()))


def _row_of(change: Change) -> _Row:
    """Return the row that makes an earlier change; a part that it did not change stays as it is now."""
    return _Row(change.path, change.label, change.part if change.part != change.original_part else "", "the cache")


def _wanted(row: _Row, part: str) -> tuple[str, str, str]:
    """Return the label, empty for an image to leave out, the part, and the row for messages."""
    moved = PARTITION_NAMES.get(row.part.casefold()) if row.part else part
    if moved is None:
        raise DatasetError(f"{row.where}: part {row.part!r}, expected train, val or test; fix the row")
    return ("" if row.label in LEFT_OUT else row.label), moved, row.where


@dataclass(frozen=True)
class _Classes:
    """The class names before and after the corrections."""

    names: tuple[str, ...]
    notes: list[str]

    def name_of(self, label: str, where: str) -> str:
        """Return the class that a label means: names that differ in case, accents' form or `_` are the same."""
        if label in self.names:
            return label
        same = [name for name in self.names if _key(name) == _key(label)]
        if len(same) > 1:
            raise DatasetError(f"{where}: label {label!r} may be {' or '.join(map(repr, same))}; use the exact name")
        return same[0] if same else label

    def note_new(self, counts: Mapping[str, int]) -> None:
        """Add a note per class that the data set did not have; it may be a typing error."""
        for name in sorted(set(counts) - set(self.names)):
            near = near_matches(name, self.names)
            meant = f"; if you meant {near[0]!r}, fix the label" if near else ""
            self.notes.append(f"new class {name!r} (images: {counts[name]}){meant}")


def _applied(
    dataset: Dataset, wanted: Mapping[str, tuple[str, str, str]], files: tuple[tuple[str, str], ...]
) -> Dataset:
    """Return a data set with the wanted labels and parts, and with a record of what changed."""
    classes = _Classes(dataset.classnames, [])
    lists: dict[str, list[tuple[Item, str]]] = {part: [] for part in PARTITIONS}
    moved: list[tuple[str, tuple[Item, str]]] = []
    changes: list[Change] = []
    for part, items in dataset.partitions.items():
        for item in items:
            original = dataset.classnames[item.label]
            label, target, where = wanted.get(item.path, (original, part, ""))
            name = classes.name_of(label, where) if label else ""
            if (name, target) != (original, part):
                changes.append(Change(item.path, original, name, part, target))
            if name and target == part:
                lists[part].append((item, name))
            elif name:
                moved.append((target, (item, name)))
    for target, named in moved:
        lists[target].append(named)
    classes.note_new(Counter(change.label for change in changes if change.label))
    corrections = Corrections(tuple(changes), files, frozenset(wanted))
    return _renumbered(dataset, lists, (*classes.notes, *corrections.notes), corrections)


def _renumbered(
    dataset: Dataset,
    lists: Mapping[str, Sequence[tuple[Item, str]]],
    notes: tuple[str, ...],
    corrections: Corrections,
) -> Dataset:
    """Return a data set of items with class names; the labels are the positions of the names that occur."""
    used = {name for named in lists.values() for _, name in named}
    names = [name for name in dataset.classnames if name in used]
    names += sorted(used.difference(names))
    in_train = {name for _, name in lists["train"]}
    missing = [name for name in names if name not in in_train]
    if missing and not dataset.test_only:
        raise DatasetError(
            f"after the corrections, {listed(missing)} has no train image; correct the label, or move an image of the "
            "class to part train"
        )
    dropped = [name for name in dataset.classnames if name not in used]
    gone = (f"no image is left of {listed(dropped)}; the class is dropped",) if dropped else ()
    label_of = {name: label for label, name in enumerate(names)}
    train, val, test = (tuple(item._replace(label=label_of[name]) for item, name in lists[part]) for part in PARTITIONS)
    ids = None
    if dataset.class_ids is not None:
        known = dict(zip(dataset.classnames, dataset.class_ids, strict=True))
        ids = tuple(known.get(name, name) for name in names)
    return replace(
        dataset,
        classnames=tuple(names),
        class_ids=ids,
        train=train,
        val=val,
        test=test,
        notes=(*dataset.notes, *notes, *gone),
        corrections=corrections,
    )


def _by_path(dataset: Dataset, rows: Iterable[_Row], known: Mapping[str, str]) -> dict[str, _Row]:
    """Return the rows of a file by the path that the data set has; raises DatasetError for unknown paths."""
    found: dict[str, _Row] = {}
    unknown: list[_Row] = []
    for row in rows:
        path = _inside(row.path, dataset.source.location, known)
        if path is None:
            unknown.append(row)
            continue
        first = found.setdefault(path, row)
        if (first.label, first.part) != (row.label, row.part):
            raise DatasetError(
                f"{row.where}: {row.path} has label {row.label!r}, but {first.label!r} in {first.where}; keep one row"
            )
    if unknown:
        path, where = unknown[0].path, unknown[0].where
        near = _nearest(path, known)
        meant = f"; did you mean {near!r}?" if near else ";"
        more = f" ({len(unknown) - 1} more rows have unknown paths)" if len(unknown) > 1 else ""
        raise DatasetError(f"{where}: data set {dataset.name!r} has no image {path!r}{meant} fix the path{more}")
    return found


def _inside(typed: str, folder: Path, known: Mapping[str, str]) -> str | None:
    """Return the path in the data set that was typed: as it is, or as a path that leads into the folder."""
    for path in (typed, PurePosixPath(typed.replace("\\", "/")).as_posix()):
        if path in known:
            return path
    inside = os.path.relpath(os.path.abspath(typed), os.path.abspath(folder))
    path = Path(inside).as_posix()
    return path if path in known else None


def _nearest(path: str, known: Mapping[str, str]) -> str | None:
    """Return the path that is most similar to an unknown one, of the same file name if there is one."""
    name = PurePosixPath(path.replace("\\", "/")).name
    same = [one for one in known if PurePosixPath(one).name == name]
    near = same[:1] or (near_matches(path, known) if len(known) <= MOST_COMPARED else [])
    return near[0] if near else None


def _rows_of(file: Path) -> tuple[list[_Row], str]:
    """Return the rows of a file, and its SHA-256."""
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as error:
        raise DatasetError(f"could not read {file} ({error.strerror}); pass a CSV file of path and label") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} is not a CSV file in UTF-8 ({error}); save it as CSV with UTF-8") from error
    cells = [(line, row) for line, row in cells if any(row)]
    columns, body = _columns(file, cells)
    rows = []
    for line, row in body:
        where = f"{file.name}, line {line}"
        path, label, part = (row[at] if at is not None and at < len(row) else None for at in columns)
        if not path or label is None:
            raise DatasetError(f"{where} has {len(row)} cells, expected a path and a label (- leaves the image out)")
        if not label.isprintable():
            raise DatasetError(f"{where}: label {label!a} has characters that cannot be printed; fix the row")
        rows.append(_Row(path, label, part or "", where))
    return rows, sha256(content).hexdigest()


def _columns(
    file: Path, cells: list[tuple[int, list[str]]]
) -> tuple[tuple[int | None, int | None, int | None], list[tuple[int, list[str]]]]:
    """Return the positions of path, label and part, and the rows below the header if there is one."""
    if not cells:
        raise DatasetError(f"{file} has no row; expected the columns path and label")
    first = cells[0][1]
    named = [cell.casefold() for cell in first]
    at = [next((named.index(name) for name in names if name in named), None) for names in (PATH_COLUMNS, LABEL_COLUMNS)]
    if None not in at:
        part = next((named.index(name) for name in PART_COLUMNS if name in named), None)
        return (at[0], at[1], part), cells[1:]
    if at != [None, None] or len(first) not in (2, 3):
        raise DatasetError(
            f"{file} has the columns {', '.join(map(repr, first[:8]))}; expected path and label, or two columns "
            "without a header"
        )
    return (0, 1, 2), cells


def _key(name: str) -> str:
    """Return a class name without what typing may change: case, form of accents, underscores for spaces."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").split())
