"""A random 60/20/20 split of each class in which every image keeps its place when others come or go."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath

SLOTS = 5  # of 5 images 1 is test, 1 is val and 3 are train
TEST_BELOW, VAL_BELOW = 0.2, 0.4


@dataclass(frozen=True)
class ClassSplit:
    """The paths of one class by partition, each sorted.

    Parameters
    ----------
    train, val, test : tuple of str
        The paths.
    moved : bool
        Whether a partition would have been empty, and so borrowed an image. That image alone may change its place when
        the class grows.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    moved: bool


def split_rule(seed: int) -> str:
    """Return the name of the rule, which a cache records."""
    return f"60/20/20 of each class by file name, seed {seed}"


def split_class(paths: Sequence[str], classname: str, seed: int) -> ClassSplit:
    """Split one class by the hash of seed, class and file name.

    Parameters
    ----------
    paths : sequence of str
        Path of each image; the class's folder is their first part.
    classname : str
        Name of the class.
    seed : int
        Seed of the split.

    Notes
    -----
    A rank within the class, or a shuffle, would move images whenever one comes or goes. A hash alone is stable but
    uneven: 10 images have no test image in 11 % of cases. Most image folders are numbered, so of each five consecutive
    numbers exactly one is test and one is val, chosen by the hash. Other names are spread by the hash alone. Only if a
    partition remains empty, it borrows an image: train always has one, test has one of two or more, val of three or
    more.
    """
    placed = {path: _place(path, classname, seed) for path in paths}
    ordered = sorted(paths, key=lambda path: (placed[path], path))
    test = [path for path in ordered if placed[path] < TEST_BELOW]
    val = [path for path in ordered if TEST_BELOW <= placed[path] < VAL_BELOW]
    train = [path for path in ordered if placed[path] >= VAL_BELOW]
    before = len(train), len(val), len(test)
    if not test and len(ordered) >= 2:
        test.append((val or train).pop(0))
    if not train and ordered:
        train.append((val or test).pop())
    if not val and len(train) >= 2:
        val.append(train.pop(0))
    moved = before != (len(train), len(val), len(test))
    return ClassSplit(tuple(sorted(train)), tuple(sorted(val)), tuple(sorted(test)), moved)


def _place(path: str, classname: str, seed: int) -> float:
    """Return the place of an image between 0 and 1, which depends on nothing but seed, class and name.

    The suffix does not count: two formats of one picture are in one partition.
    """
    below = PurePosixPath(*PurePosixPath(path).parts[1:])
    name = unicodedata.normalize("NFC", below.with_suffix("").as_posix())
    key = f"{seed}/{unicodedata.normalize('NFC', classname)}/"
    numbered = re.fullmatch(r"(.*?)(\d{1,18})(\D*)", name, re.DOTALL)
    if numbered is None or not numbered[2].isascii():
        return _fraction(key + name)
    block, slot = divmod(int(numbered[2]), SLOTS)
    series = f"{key}{numbered[1]}#{numbered[3]}/{block}/"
    chances = [_fraction(f"{series}{number}") for number in range(SLOTS)]
    rank = sum(chance < chances[slot] for chance in chances)
    return (rank + chances[slot]) / SLOTS


def _fraction(key: str) -> float:
    """Return a number between 0 and 1, evenly spread over keys."""
    return int.from_bytes(sha256(key.encode("utf-8", "surrogateescape")).digest()[:6]) / 2**48
