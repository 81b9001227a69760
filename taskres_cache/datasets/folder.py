"""A folder of images: `folder/<class>/**`, split 60/20/20 here, or `folder/{train,val,test}/<class>/**`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from taskres_cache.datasets.class_names import Classes, listed, matched_classes, note_similar
from taskres_cache.datasets.dataset import GIVEN_SPLIT, PARTITIONS, Dataset, Item
from taskres_cache.datasets.images import ImageSource
from taskres_cache.datasets.splitting import split_class, split_rule
from taskres_cache.datasets.survey import Survey, survey_of, unused_note
from taskres_cache.errors import DatasetError

GENERAL_TEMPLATES = ("a photo of a {}.",)
PARTITION_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def read_folder(
    source: ImageSource,
    name: str,
    split_seed: int = 0,
    templates: tuple[str, ...] = GENERAL_TEMPLATES,
    survey: Survey | None = None,
) -> Dataset:
    """Read the data set in a folder or archive; class names are the sorted folder names.

    Images in folders below a class folder belong to the class. A folder that contains nothing but one other folder is
    entered. What is not used is counted in the notes.

    Parameters
    ----------
    source : ImageSource
        The images.
    name : str
        Name of the data set.
    split_seed : int
        Seed of the 60/20/20 split; not used if the folder is split already.
    templates : tuple of str
        Prompts with one `{}` each.
    survey : Survey, optional
        What is in the folder or archive. Defaults to what `survey_of` finds.

    Raises
    ------
    DatasetError
        The folder does not exist or cannot be read, has fewer than two classes or a class without images, or has train
        and val without test.
    """
    if not source.location.exists():
        raise DatasetError(f"{source.location} does not exist; pass a folder with one folder of images per class")
    survey = survey or survey_of(source)
    below, notes = _entered(survey)
    partitions = partition_folders(_names_in(below, survey.folders))
    (only, *others) = [name for folders in partitions.values() for name in folders] or [""]
    if only and not others and "test" not in partitions:
        partitions, below, notes = (
            {},
            [*below, only],
            [*notes, f"there is no folder but {only!r}; its classes are split"],
        )
    reading = _Reading(source, name, templates, survey, "/".join(below), notes)
    return reading.split_here(split_seed) if not partitions else reading.as_split(partitions)


def partition_folders(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the folders of each partition among top folders; empty if these are classes.

    `valid`, `validation` and `dev` are val, in any case. Classes may have such names too: other folders next to one
    partition make all of them classes, next to several partitions they are not used.
    """
    found: dict[str, list[str]] = {}
    names = list(names)
    for name in names:
        partition = PARTITION_NAMES.get(name.casefold())
        if partition is not None:
            found.setdefault(partition, []).append(name)
    several = len(found) > 1 or sum(map(len, found.values())) == len(names)
    return found if several else {}


def _entered(survey: Survey) -> tuple[list[str], list[str]]:
    """Return the folder in which the classes or partitions are, as parts, and a note if it is not the top."""
    below: list[str] = []
    while True:
        names = _names_in(below, survey.folders)
        parents = {PurePosixPath(image).parts[:-1] for image in survey.images}
        if len(names) != 1 or names[0].casefold() in PARTITION_NAMES or (*below, *names) in parents:
            break
        below += names
    if not below or not (len(names) > 1 or partition_folders(names)):
        return [], []
    return below, [f"the classes are in {'/'.join(below)!r}"]


def _names_in(below: Sequence[str], folders: Iterable[str]) -> list[str]:
    """Return the names of the folders directly in a folder, sorted."""
    depth = len(below)
    parts = [PurePosixPath(folder).parts for folder in folders]
    return sorted(part[-1] for part in parts if len(part) == depth + 1 and part[:depth] == tuple(below))


class _Reading:
    """One folder while it is read."""

    def __init__(
        self,
        source: ImageSource,
        name: str,
        templates: tuple[str, ...],
        survey: Survey,
        below: str,
        notes: Sequence[str],
    ) -> None:
        self.source, self.name, self.templates, self.survey = source, name, templates, survey
        self.below, self.notes = below, list(notes)
        self.others: Counter[str] = Counter(survey.others)
        self.used: set[str] = set()

    def split_here(self, seed: int) -> Dataset:
        """Return the data set of class folders, split by a hash."""
        merged = matched_classes({"train": self._classes(self.below)}, self.notes)
        by_class = merged.get("train", {})
        note_similar(by_class, self.notes)
        items: dict[str, list[Item]] = {partition: [] for partition in PARTITIONS}
        borrowed = []
        for label, classname in enumerate(sorted(by_class)):
            relative = {self._inside(path): path for path in by_class[classname]}
            parts = split_class(tuple(relative), classname, seed)
            for partition in PARTITIONS:
                items[partition] += [Item(relative[path], label) for path in getattr(parts, partition)]
            borrowed += [classname] if parts.moved and len(relative) >= 3 else []
            if len(relative) < 3:
                self.notes.append(f"class {classname!r} has fewer than 3 images, too few for train, val and test")
        if borrowed:
            self.notes.append(
                f"{listed(borrowed)}: too few images for an even split by file name; one image per empty partition is "
                "borrowed and may change its place when the class grows"
            )
        return self._dataset(sorted(by_class), items, split_rule(seed))

    def as_split(self, partitions: Mapping[str, Sequence[str]]) -> Dataset:
        """Return the data set of folders that are split already."""
        found: dict[str, Classes] = {}
        for partition in PARTITIONS:
            for folder in partitions.get(partition, ()):
                classes = self._classes("/".join(part for part in (self.below, folder) if part))
                for classname, paths in classes.items():
                    found.setdefault(partition, {}).setdefault(classname, []).extend(paths)
        if "test" not in found:
            raise DatasetError(
                f"{self.source.location} has {' and '.join(found)} folders but no test/<class>/ folder; add one, "
                "rename the val folder to test, or pass one folder per class to have it split"
            )
        merged = matched_classes(found, self.notes)
        classnames = sorted({classname for classes in merged.values() for classname in classes})
        items = {
            partition: [
                Item(path, label)
                for label, classname in enumerate(classnames)
                for path in merged.get(partition, {}).get(classname, ())
            ]
            for partition in PARTITIONS
        }
        return self._dataset(classnames, items)

    def _classes(self, below: str) -> Classes:
        """Return the images of each class folder in a folder; raises DatasetError for a class without images."""
        parts = PurePosixPath(below).parts
        classes: Classes = {name: [] for name in _names_in(parts, self.survey.folders)}
        for path in self.survey.images:
            inside = PurePosixPath(path).parts
            if inside[: len(parts)] == parts and len(inside) > len(parts) + 1:
                classes[inside[len(parts)]].append(path)
                self.used.add(path)
        empty = [name for name, paths in classes.items() if not paths]
        if empty:
            raise DatasetError(
                f"{self.source.location} has no image in {listed('/'.join([*parts, name]) for name in empty)}; add "
                f"images, or move the folder elsewhere if it is no class{self._found_instead()}"
            )
        return classes

    def _found_instead(self) -> str:
        note = unused_note(self.survey.others)
        return f" ({note[0]})" if note else ""

    def _inside(self, path: str) -> str:
        return path.removeprefix(f"{self.below}/") if self.below else path

    def _dataset(
        self, classnames: Sequence[str], items: Mapping[str, Sequence[Item]], split: str = GIVEN_SPLIT
    ) -> Dataset:
        deeper = sum(len(PurePosixPath(path).parts) > self._depth(split) for path in self.used)
        if deeper:
            self.notes.append(f"{deeper} images in folders below a class folder belong to the class")
        unused = [path for path in self.survey.images if path not in self.used]
        self.others["in no class folder"] += len(unused)
        notes = (*self.notes, *unused_note(+self.others))
        train, val, test = (tuple(items[partition]) for partition in PARTITIONS)
        names = tuple(classnames)
        return Dataset(self.name, self.source, names, self.templates, train, val, test, split=split, notes=notes)

    def _depth(self, split: str) -> int:
        """Return the number of parts of the path of an image directly in a class folder."""
        return len(PurePosixPath(self.below).parts) + (3 if split == GIVEN_SPLIT else 2)
