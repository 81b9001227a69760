"""The entries of a description file, matched to the classes of a data set.

Axes: C classes.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.prompts import own_or_filled
from taskres_cache.datasets.text.description_file import Description, read_descriptions
from taskres_cache.errors import OptionError, near_matches
from taskres_cache.system.names import shown

LISTED = 3  # classes in a note


@dataclass(frozen=True)
class ClassDescriptions:
    """Names and prompts of the classes of a data set.

    Parameters
    ----------
    names : tuple of str
        The names that templates are filled with (C,): those of the file, else the class names.
    prompts : tuple of tuple of str
        Complete sentences of each class (C,); empty for a class that has a name only.
    notes : tuple of str
        Notes for the user: entries that were matched loosely, ignored or repeated.
    """

    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def sentences(self, templates: Sequence[str], form: str) -> tuple[tuple[str, ...], ...]:
        """Return the prompts of each class; those of a class with a name only are the filled templates."""
        return own_or_filled(self.prompts, templates, self.names, form)


def read_class_descriptions(
    file: Path, classnames: Sequence[str], class_ids: Sequence[str] | None = None
) -> ClassDescriptions:
    """Read names and prompts of the classes of a data set from a file.

    Parameters
    ----------
    file : Path
        YAML, JSON, CSV or TSV, see `read_descriptions`. CuPL's files can be used as they are.
    classnames : sequence of str
        Class names (C,). An entry belongs to the classes whose name it has; else to the class whose identifier it has;
        else to the class whose name differs in case, spaces and underscores only. Entries of no class are ignored.
    class_ids : sequence of str, optional
        Identifiers (C,) of the classes.

    Raises
    ------
    OptionError
        The file could not be read or has another form, has no entry of a class, or several that match it loosely.
    """
    listed = {one.key: one for one in read_descriptions(file)}
    found = _matched(file, listed, classnames, class_ids)
    pairs = list(zip(classnames, found, strict=True))
    return ClassDescriptions(
        names=tuple(one.name or classname for classname, one in pairs),
        prompts=tuple(one.prompts for one in found),
        notes=_notes(file, listed, pairs, class_ids or ()),
    )


def with_descriptions(dataset: Dataset, file: Path) -> Dataset:
    """Return a data set with the names and prompts of a file; parameters and errors are those of the reader."""
    read = read_class_descriptions(file, dataset.classnames, dataset.class_ids)
    prompts = read.prompts if any(read.prompts) else None
    return replace(dataset, shown_names=read.names, prompts=prompts, notes=(*dataset.notes, *read.notes))


def _matched(
    file: Path, listed: Mapping[str, Description], classnames: Sequence[str], class_ids: Sequence[str] | None
) -> list[Description]:
    """Return the entry of each class (C,)."""
    exact = [listed.get(name) or listed.get(key) for name, key in zip(classnames, class_ids or classnames, strict=True)]
    taken = {one.key for one in exact if one is not None}
    by_plain: dict[str, list[Description]] = {}
    for one in listed.values():
        if one.key not in taken:
            by_plain.setdefault(_plain(one.key), []).append(one)
    found = [one or _loosely(file, name, by_plain) for name, one in zip(classnames, exact, strict=True)]
    missing = [name for name, one in zip(classnames, found, strict=True) if one is None]
    if missing:
        near = near_matches(missing[0], (key for key in listed if key not in taken))
        hint = f" (is it {' or '.join(shown(one) for one in near)}?)" if near else ""
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise OptionError(f"{file} has no class {shown(missing[0])}{more}{hint}; add a name or prompts for it")
    _refuse_shared(file, classnames, exact, found)
    return [one for one in found if one is not None]


def _loosely(file: Path, name: str, by_plain: Mapping[str, Sequence[Description]]) -> Description | None:
    """Return the only entry whose key differs from a name in case, spaces and underscores; None without one."""
    near = by_plain.get(_plain(name), ())
    if len(near) > 1:
        places = " and ".join(f"{shown(one.key)} ({one.where})" for one in near[:LISTED])
        raise OptionError(f"{file}: {places} all match class {shown(name)}; rename one of them to exactly this name")
    return near[0] if near else None


def _refuse_shared(
    file: Path,
    classnames: Sequence[str],
    exact: Sequence[Description | None],
    found: Sequence[Description | None],
) -> None:
    """Raise OptionError if one entry matches two classes loosely; classes of the same name may share one."""
    users: dict[str, str] = {}
    for name, one, by_name in zip(classnames, found, exact, strict=True):
        if one is None or by_name is not None:
            continue
        other = users.setdefault(one.key, name)
        if other != name:
            raise OptionError(
                f"{file}, {one.where}: {shown(one.key)} matches the classes {shown(other)} and {shown(name)}; add an "
                "entry for each of them"
            )


def _plain(name: str) -> str:
    """Return a class name without the differences that files have in it; macOS decomposes accents in file names."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split()).casefold()


def _notes(
    file: Path,
    listed: Mapping[str, Description],
    pairs: Sequence[tuple[str, Description]],
    class_ids: Sequence[str],
) -> tuple[str, ...]:
    """Return notes on entries that were matched loosely, that belong to no class, and that repeat a prompt."""
    used = {one.key for _, one in pairs}
    loose = [
        f"{shown(one.key)} for {shown(name)}" for name, one in pairs if one.key != name and one.key not in class_ids
    ]
    ignored = [f"{shown(key)} ({one.where})" for key, one in listed.items() if key not in used]
    repeated = [f"{shown(text)} ({one.where})" for one in listed.values() if one.key in used for text in one.repeated]
    notes = {
        "matched but for case, spaces and underscores": loose,
        "not in the data set, ignored": ignored,
        "repeated in their class, counted once": repeated,
    }
    return tuple(f"{file}: {what}: {_listed(items)}" for what, items in notes.items() if items)


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more
