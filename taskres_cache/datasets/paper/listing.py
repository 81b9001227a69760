"""Lists of labelled paths, the result of every reader, with the file and line that each entry comes from.

CoOp's split files are such lists. Its two ways of splitting, for data sets without a split file, are here with a seed.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from taskres_cache.datasets.dataset import PARTITIONS, Item
from taskres_cache.errors import DatasetError
from taskres_cache.system.names import shown

BUILD_SEED = 0  # seed of splits built here; CoOp used the global generator in an unknown state
VAL_SHARE = 0.2
LONGEST_LABEL = 9  # digits
TRAIN_SHARE = 0.5


class Labelled(NamedTuple):
    """One entry of a list.

    Parameters
    ----------
    path : str
        Path of the image.
    label : int
        Position of the class.
    classname : str
        Name of the class.
    where : str
        File and line or key of the entry.
    """

    path: str
    label: int
    classname: str
    where: str


@dataclass(frozen=True)
class Listing:
    """Lists of a data set; the fields are those of `Dataset`."""

    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    classnames: tuple[str, ...]
    split: str
    class_ids: tuple[str, ...] | None = None


def listing_of(
    train: Sequence[Labelled],
    val: Sequence[Labelled],
    test: Sequence[Labelled],
    split: str,
) -> Listing:
    """Return the listing of labelled paths.

    Raises
    ------
    DatasetError
        A label has no name, or more than one.
    """
    classnames = _classnames([*train, *val, *test])
    trains, vals, tests = (
        tuple(Item(line.path, line.label, line.where) for line in part) for part in (train, val, test)
    )
    return Listing(trains, vals, tests, classnames, split)


def read_split_file(file: Path, image_folder: str) -> Listing:
    """Read one of CoOp's `split_zhou_*.json` files.

    Parameters
    ----------
    file : Path
        `{"train": [[path, label, classname], ...], "val": ..., "test": ...}`.
    image_folder : str
        Folder of the file's paths, relative to the data set's folder; "" for that folder itself.

    Raises
    ------
    DatasetError
        The file has another structure; the message names the file, the key and the position.
    """
    content = read_bytes(file)
    try:
        lists = json.loads(content)  # bytes, so that a byte-order mark is understood
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is not valid JSON ({error}); get an intact copy") from error
    if not isinstance(lists, dict) or any(not isinstance(lists.get(part), list) for part in PARTITIONS):
        raise DatasetError(f"{file}: expected the keys train, val and test with a list each; get an intact copy")
    train, val, test = (
        [
            _split_line(entry, f"{short(file)} {part}[{number}]", image_folder)
            for number, entry in enumerate(lists[part])
        ]
        for part in PARTITIONS
    )
    return listing_of(train, val, test, f"{file.name}, sha256 {sha256(content).hexdigest()[:16]}")


def split_trainval(lines: Sequence[Labelled], seed: int = BUILD_SEED) -> tuple[list[Labelled], list[Labelled]]:
    """Split into train and val: a shuffled fifth of each class, in order of first appearance, is val (CoOp's rule)."""
    rng = Random(seed)
    train: list[Labelled] = []
    val: list[Labelled] = []
    for members in _by_label(lines).values():
        rng.shuffle(members)
        count = round(len(members) * VAL_SHARE)
        val += members[:count]
        train += members[count:]
    return train, val


def split_each_class(
    lines: Sequence[Labelled], seed: int = BUILD_SEED
) -> tuple[list[Labelled], list[Labelled], list[Labelled]]:
    """Split into train, val and test: each class is shuffled, then 50 %, 20 % and the rest (CoOp's rule)."""
    rng = Random(seed)
    train: list[Labelled] = []
    val: list[Labelled] = []
    test: list[Labelled] = []
    for members in _by_label(lines).values():
        rng.shuffle(members)
        first = round(len(members) * TRAIN_SHARE)
        second = first + round(len(members) * VAL_SHARE)
        train += members[:first]
        val += members[first:second]
        test += members[second:]
    return train, val, test


def read_bytes(file: Path) -> bytes:
    """Return a file's content; raises DatasetError if it could not be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"could not read {file} ({error.strerror}); `taskres datasets` shows where to get it"
        ) from error


def read_lines(file: Path) -> list[tuple[str, str]]:
    """Return (where, line) for each non-empty line; raises DatasetError if the file could not be read."""
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not UTF-8 text ({error}); get an intact copy") from error
    numbered = enumerate(text.splitlines(), start=1)
    return [(f"{short(file)} line {number}", line.strip()) for number, line in numbered if line.strip()]


def short(file: Path) -> str:
    """Return the names of a file and its folder, for messages."""
    return f"{file.parent.name}/{file.name}"


def joined(folder: str, path: str) -> str:
    """Return folder and path joined by a slash; the folder may be empty."""
    return f"{folder}/{path}" if folder else path


def _split_line(entry: Any, where: str, image_folder: str) -> Labelled:
    match entry:
        case [str(path), int() | str() as label, str(classname)] if _is_label(str(label)):
            return Labelled(joined(image_folder, _below(path, where)), int(label), classname, where)
    raise DatasetError(f"{where}: expected [path, label, class name], got {json.dumps(entry)[:100]}; fix the file")


def _is_label(label: str) -> bool:
    return label.isascii() and label.isdecimal() and len(label) <= LONGEST_LABEL


def _below(path: str, where: str) -> str:
    """Return a path below the image folder; lists from other machines begin with slashes or have backslashes."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in path:
        raise DatasetError(f"{where}: {shown(path)} is not a path below the image folder; fix the file")
    return "/".join(parts)


def _classnames(lines: Iterable[Labelled]) -> tuple[str, ...]:
    """Return the class names in label order; every label must have exactly one."""
    first: dict[int, Labelled] = {}
    for line in lines:
        named = first.setdefault(line.label, line)
        if not line.classname.strip():
            raise DatasetError(f"{line.where}: {line.path} has label {line.label} and no class name; fix the list")
        if any("\ud800" <= character <= "\udfff" for character in line.classname):
            raise DatasetError(
                f"{line.where}: the class name {shown(line.classname)} is not Unicode text; fix the list"
            )
        if named.classname != line.classname:
            raise DatasetError(
                f"{line.where}: label {line.label} is {line.classname!r} here and {named.classname!r} in "
                f"{named.where}, expected one name per label; fix the list"
            )
    unnamed = next((label for label in range(len(first)) if label not in first), None)
    if unnamed is not None:
        last = first[max(first)]
        raise DatasetError(
            f"{last.where} has label {last.label}, but no entry has label {unnamed}; labels must count from 0 without "
            "gaps: fix the list"
        )
    return tuple(first[label].classname for label in range(len(first)))


def _by_label(lines: Sequence[Labelled]) -> dict[int, list[Labelled]]:
    """Return the lines by label, labels in order of first appearance."""
    grouped: dict[int, list[Labelled]] = {}
    for line in lines:
        grouped.setdefault(line.label, []).append(line)
    return grouped
