"""Names of several archives in one text: braces, wildcards and lists."""

import os
import re
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path

from taskres_cache.datasets.folder import PARTITION_NAMES
from taskres_cache.datasets.packed.images import SEPARATOR
from taskres_cache.errors import DatasetError

MOST_SHARDS = 100_000
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
PART = re.compile(rf"({'|'.join(sorted(PARTITION_NAMES, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
ADDRESS = re.compile(r"[a-z][a-z0-9+-]+://|pipe:", re.IGNORECASE)


def is_pattern(typed: str) -> bool:
    """Return True if a text names several files: it has braces, wildcards or `::`, and no file has that name."""
    several = SEPARATOR in typed or BRACES.search(typed) or has_magic(typed) or ADDRESS.match(typed)
    return bool(several) and not os.path.exists(typed)


def shards_of(typed: str) -> list[Path]:
    """Return the files that a text names, each once: braces and lists in their order, wildcards sorted.

    Raises
    ------
    DatasetError
        A file does not exist, nothing matches, there are more than 100,000 files, or the text is an address.
    """
    if ADDRESS.search(typed):
        raise DatasetError(f"{typed!r} is an address; download the files and pass their paths")
    found: dict[Path, None] = {}
    for one in typed.split(SEPARATOR):
        for name in _expanded(one, typed):
            matches = sorted(glob(name)) if has_magic(name) else [name]
            if not matches:
                raise DatasetError(f"no file matches {name!r}; check the pattern")
            found |= dict.fromkeys(map(Path, matches))
            if len(found) > MOST_SHARDS:
                raise DatasetError(f"{typed!r} names more than {MOST_SHARDS} shards; check the pattern")
    missing = [path for path in found if not path.exists()]
    if missing:
        more = f" and {len(missing) - 1} more of {len(found)} files" if len(missing) > 1 else ""
        raise DatasetError(f"{missing[0]}{more} do{'' if more else 'es'} not exist; check the pattern {typed!r}")
    return list(found)


def labelled_names(shards: list[Path]) -> list[str]:
    """Return a name for each shard: that of the file, with its folder where two files have the same name."""
    if len({shard.name for shard in shards}) == len(shards):
        return [shard.name for shard in shards]
    top = os.path.commonpath([shard.absolute().parent for shard in shards])
    return [shard.absolute().relative_to(top).as_posix() for shard in shards]


def parts_of(files: Sequence[Path]) -> list[str]:
    """Return the part that each file's name begins with, or else its folder's; empty for all unless each has one.

    A folder counts only if the files are in several.
    """
    by_name = [_part(file.name) for file in files]
    folders = [file.absolute().parent for file in files]
    by_folder = [_part(folder.name) for folder in folders] if len(set(folders)) > 1 else []
    return next((parts for parts in (by_name, by_folder) if parts and all(parts)), [""] * len(files))


def pattern_name(typed: str) -> str:
    """Return a name for the data set of a pattern: what stands before the first wildcard of its last part."""
    first = Path(typed.split(SEPARATOR)[0])
    stem = re.split(r"[{*?\[]", first.name.removesuffix(".tar"))[0].strip("-_. ")
    return stem or first.absolute().parent.name or "shards"


def _part(name: str) -> str:
    found = PART.match(name)
    return PARTITION_NAMES[found[1].casefold()] if found else ""


def _expanded(pattern: str, typed: str) -> Iterator[str]:
    """Yield the names that braces stand for: `{000..015}` counts, `{a,b}` lists."""
    braces = BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    for word in _words(braces[1], typed):
        yield from _expanded(before + word + after, typed)


def _words(inside: str, typed: str) -> list[str]:
    """Return the words in one pair of braces."""
    counted = RANGE.fullmatch(inside)
    if counted is None:
        return inside.split(",")
    first, last = int(counted[1]), int(counted[2])
    if abs(last - first) >= MOST_SHARDS:
        raise DatasetError(f"{typed!r} names more than {MOST_SHARDS} shards; check the pattern")
    step = 1 if first <= last else -1
    return [f"{number:0{len(counted[1])}d}" for number in range(first, last + step, step)]
