"""A data set from rows of image, class name and, if known, part: what every form of input comes down to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from taskres_cache.datasets.class_names import Classes, listed, matched_classes, note_similar
from taskres_cache.datasets.dataset import GIVEN_SPLIT, PARTITIONS, Dataset, Item
from taskres_cache.datasets.folder import GENERAL_TEMPLATES, PARTITION_NAMES
from taskres_cache.datasets.images import ImageSource
from taskres_cache.datasets.splitting import split_class, split_rule
from taskres_cache.errors import DatasetError


class Row(NamedTuple):
    """One labelled image.

    Parameters
    ----------
    path : str
        Path in the image source.
    classname : str
        Name of its class.
    split : str
        Part as it was given, such as "train" or "validation"; empty if it was not.
    where : str
        File and row that list the image, for messages.
    """

    path: str
    classname: str
    split: str = ""
    where: str = ""


def dataset_of_rows(
    source: ImageSource, name: str, rows: Sequence[Row], split_seed: int = 0, notes: Sequence[str] = ()
) -> Dataset:
    """Return the data set of rows; images without a part are split 60/20/20 as those of class folders.

    Class names are sorted: numbers by value, others as text.

    Parameters
    ----------
    source : ImageSource
        Reads the images.
    name : str
        Name of the data set.
    rows : sequence of Row
        One row per image, in list order. Either all rows have a part, or none.
    split_seed : int
        Seed of the split; not used if the rows have parts.
    notes : sequence of str
        What was left out while the rows were read.

    Raises
    ------
    DatasetError
        There is no row, only some rows have a part, a part has an unknown name, there is no test part, or `Dataset`
        refuses the result: an image is listed twice, or a class has no train image.
    """
    if not rows:
        raise DatasetError(f"{source.location} lists no image; add rows of an image and its class")
    gathered = list(notes)
    if any(row.split for row in rows):
        parts, split = _given_parts(source, rows, gathered), GIVEN_SPLIT
    else:
        parts, split = _split_here(rows, split_seed, gathered), split_rule(split_seed)
    classnames = _sorted_names({row.classname for chosen in parts.values() for row in chosen})
    _refuse_unusable(source, name, classnames, parts)
    label_of = {classname: label for label, classname in enumerate(classnames)}
    train, val, test = (
        tuple(Item(row.path, label_of[row.classname], row.where) for row in parts[part]) for part in PARTITIONS
    )
    return Dataset(name, source, classnames, GENERAL_TEMPLATES, train, val, test, split=split, notes=tuple(gathered))


def _refuse_unusable(
    source: ImageSource, name: str, classnames: Sequence[str], parts: Mapping[str, Sequence[Row]]
) -> None:
    """Raise DatasetError for a single class, or a class that is only in val or test, unless all rows are test rows."""
    if len(classnames) < 2:
        raise DatasetError(
            f"data set {name!r}: all rows have one class, {classnames[0]!r}, expected at least 2; add rows of other "
            f"classes ({source.location})"
        )
    trained = {row.classname for row in parts["train"]}
    missing = [classname for classname in classnames if classname not in trained]
    if missing and (parts["train"] or parts["val"]):
        raise DatasetError(
            f"data set {name!r} has no train row of {listed(missing)}; add some, or remove all rows of the class "
            f"({source.location})"
        )


def _given_parts(source: ImageSource, rows: Sequence[Row], notes: list[str]) -> dict[str, list[Row]]:
    """Return the rows of each part by the parts that they name, class names matched across parts."""
    parts: dict[str, list[Row]] = {part: [] for part in PARTITIONS}
    for row in rows:
        part = PARTITION_NAMES.get(row.split.strip().casefold())
        if part is None:
            found = f"split {row.split!r}" if row.split else "no split, but other rows have one"
            raise DatasetError(f"{row.where or row.path}: {found}, expected train, val or test; fix the row")
        parts[part].append(row)
    if not parts["test"]:
        raise DatasetError(
            f"{source.location} has {' and '.join(part for part in PARTITIONS if parts[part])} rows but no test row; "
            "add some, or have all images split by the program (of a list: --split-column '')"
        )
    return _matched(parts, notes)


def _split_here(rows: Sequence[Row], seed: int, notes: list[str]) -> dict[str, list[Row]]:
    """Return the rows of each part, each class split by a hash of its paths."""
    merged = _matched({"train": rows, "val": (), "test": ()}, notes)["train"]
    by_class: dict[str, dict[str, Row]] = {}
    for row in merged:
        known = by_class.setdefault(row.classname, {})
        first = known.setdefault(_key(row), row)
        if first is not row:
            raise DatasetError(
                f"{row.path} is listed twice ({first.where} and {row.where}), expected once; fix the list"
            )
    note_similar(by_class, notes)
    parts: dict[str, list[Row]] = {part: [] for part in PARTITIONS}
    few, borrowed = [], []
    for classname in _sorted_names(by_class):
        members = by_class[classname]
        split = split_class(tuple(members), classname, seed)
        for part in PARTITIONS:
            parts[part] += [members[key] for key in getattr(split, part)]
        few += [classname] if len(members) < 3 else []
        borrowed += [classname] if split.moved and len(members) >= 3 else []
    if few:
        notes.append(f"{_classes(few)} fewer than 3 images, too few for train, val and test: {listed(few)}")
    if borrowed:
        notes.append(
            f"{listed(borrowed)}: too few images for an even split by file name; one image per empty part is "
            "borrowed and may change its place when the class grows"
        )
    return parts


def _classes(names: Sequence[str]) -> str:
    return "1 class has" if len(names) == 1 else f"{len(names)} classes have"


def _key(row: Row) -> str:
    """Return the path by which a row is split: as below a class folder, so that a list splits as the folder does."""
    first = PurePosixPath(row.path).parts[:1]
    return row.path if first == (row.classname,) else f"{row.classname or '-'}/{row.path}"


def _matched(parts: Mapping[str, Sequence[Row]], notes: list[str]) -> dict[str, list[Row]]:
    """Return the rows with one spelling of each class name."""
    found: dict[str, Classes] = {part: {row.classname: [row.classname] for row in rows} for part, rows in parts.items()}
    one_spelling = {
        (part, spelling): classname
        for part, classes in matched_classes(found, notes).items()
        for classname, spellings in classes.items()
        for spelling in spellings
    }
    return {
        part: [row._replace(classname=one_spelling[part, row.classname]) for row in rows]
        for part, rows in parts.items()
    }


def _sorted_names(names: Mapping[str, object] | set[str]) -> tuple[str, ...]:
    """Return class names in label order: whole numbers by value, then others as text."""
    numbers = Counter(name.isascii() and name.isdigit() for name in names)
    if numbers[True] == len(names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
