"""Class names as folders and lists have them: which spellings are one class; knows no files."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from taskres_cache.datasets.dataset import PARTITIONS
from taskres_cache.system.names import shown

MOST_NAMES, LONGEST_NAME = 5, 200

Classes = dict[str, list[str]]  # class name -> paths


def matched_classes(found: Mapping[str, Classes], notes: list[str]) -> dict[str, Classes]:
    """Return the classes of each partition under one name each; add a note for each two that become one.

    Unicode has two forms of accented letters, and systems differ in which they write; names in both forms are one
    class. Names that differ in case are one class across partitions, unless a partition has both.
    """
    spelled = {partition: Counter(map(_folded, classes)) for partition, classes in found.items()}
    ambiguous = {
        key
        for partition, classes in found.items()
        for key in spelled[partition]
        if len({unicodedata.normalize("NFC", name) for name in classes if _folded(name) == key}) > 1
    }
    chosen: dict[str, str] = {}
    merged: dict[str, Classes] = {}
    for partition in PARTITIONS:
        for name in sorted(found.get(partition, {})):
            key = unicodedata.normalize("NFC", name) if _folded(name) in ambiguous else _folded(name)
            first = chosen.setdefault(key, name)
            if first != name:
                notes.append(f"class folders {first!r} and {name!a} in {partition} are taken as one class, {first!r}")
            merged.setdefault(partition, {}).setdefault(first, []).extend(found[partition][name])
    return merged


def note_similar(classes: Iterable[str], notes: list[str]) -> None:
    """Add a note on classes whose names differ only in case."""
    by_key: dict[str, list[str]] = {}
    for name in classes:
        by_key.setdefault(_folded(name), []).append(name)
    notes += [f"classes {listed(names)} differ only in case" for names in by_key.values() if len(names) > 1]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def listed(names: Iterable[str]) -> str:
    """Return the first few names as text, long ones shortened, then the number of the others."""
    quoted = [shown(name, LONGEST_NAME) for name in names]
    more = f" and {len(quoted) - MOST_NAMES} more" if len(quoted) > MOST_NAMES else ""
    return ", ".join(quoted[:MOST_NAMES]) + more
