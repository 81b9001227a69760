"""A folder of images: `folder/<class>/*`, split 60/20/20 here with a seed, or `folder/{train,val,test}/<class>/*`."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from random import Random

from taskres_cache.datasets.dataset import PARTITIONS, Dataset, Item
from taskres_cache.datasets.images import ImageSource
from taskres_cache.errors import DatasetError

GENERAL_TEMPLATES = ("a photo of a {}.",)
VAL_SHARE = TEST_SHARE = 0.2


def read_folder(
    source: ImageSource, name: str, split_seed: int = 0, templates: tuple[str, ...] = GENERAL_TEMPLATES
) -> Dataset:
    """Read the data set in a folder or archive; class names are the sorted folder names.

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

    Raises
    ------
    DatasetError
        The folder does not exist, has fewer than two classes, a class without images, or train without test.
    """
    if not source.location.exists():
        raise DatasetError(f"{source.location} does not exist; pass a folder with one folder of images per class")
    folders = source.folders()
    if is_presplit(folders):
        return _read_presplit(source, name, folders, templates)
    return _read_classes(source, name, folders, split_seed, templates)


def is_presplit(folders: Iterable[str]) -> bool:
    """Return True if the top folders are partitions (train, with or without val and test), not classes."""
    top = {PurePosixPath(folder).parts[0] for folder in folders}
    return "train" in top and top <= set(PARTITIONS)


def split_class(paths: Iterable[str], classname: str, split_seed: int) -> dict[str, list[str]]:
    """Split the paths of one class into train (60 %), val (20 %) and test (20 %), each sorted.

    The seed includes the class name, so adding a class does not change the split of the others. One image goes to
    train, two to train and test; with three or more, every partition has one.
    """
    shuffled = sorted(paths)
    Random(f"{split_seed}/{classname}").shuffle(shuffled)
    tests = max(round(len(shuffled) * TEST_SHARE), int(len(shuffled) >= 2))
    vals = max(round(len(shuffled) * VAL_SHARE), int(len(shuffled) >= 3))
    cuts = {"test": shuffled[:tests], "val": shuffled[tests : tests + vals], "train": shuffled[tests + vals :]}
    return {partition: sorted(cuts[partition]) for partition in PARTITIONS}


def _read_classes(
    source: ImageSource, name: str, folders: list[str], split_seed: int, templates: tuple[str, ...]
) -> Dataset:
    classnames = sorted({PurePosixPath(folder).parts[0] for folder in folders})
    by_class = _by_folder(source.paths(), depth=1)
    _refuse_empty(source.location, [classname for classname in classnames if not by_class.get(classname)])
    items: dict[str, list[Item]] = {partition: [] for partition in PARTITIONS}
    for label, classname in enumerate(classnames):
        for partition, paths in split_class(by_class[classname], classname, split_seed).items():
            items[partition] += [Item(path, label) for path in paths]
    small = [classname for classname in classnames if len(by_class[classname]) < 3]
    notes = [f"class {classname!r} has fewer than 3 images, too few for train, val and test" for classname in small]
    split = f"60/20/20 of each class, seed {split_seed}"
    return Dataset(name, source, tuple(classnames), templates, *_as_tuples(items), split=split, notes=tuple(notes))


def _read_presplit(source: ImageSource, name: str, folders: list[str], templates: tuple[str, ...]) -> Dataset:
    by_folder = _by_folder(source.paths(), depth=2)
    class_folders = [folder for folder in folders if "/" in folder]
    _refuse_empty(source.location, [folder for folder in class_folders if not by_folder.get(folder)])
    if not any(folder.startswith("test/") for folder in class_folders):
        raise DatasetError(
            f"{source.location} has a train folder but no test/<class>/ folder; add one, or pass one folder per class "
            "to have it split"
        )
    classnames = sorted({folder.split("/", 1)[1] for folder in class_folders})
    labels = {classname: label for label, classname in enumerate(classnames)}
    items: dict[str, list[Item]] = {partition: [] for partition in PARTITIONS}
    for folder in sorted(class_folders):
        partition, classname = folder.split("/", 1)
        items[partition] += [Item(path, labels[classname]) for path in by_folder[folder]]
    return Dataset(name, source, tuple(classnames), templates, *_as_tuples(items))


def _by_folder(paths: Iterable[str], depth: int) -> dict[str, list[str]]:
    """Return the paths of images by their folder, for folders of one depth."""
    grouped: dict[str, list[str]] = {}
    for path in paths:
        folder = PurePosixPath(path).parent
        if len(folder.parts) == depth:
            grouped.setdefault(folder.as_posix(), []).append(path)
    return grouped


def _refuse_empty(location: Path, empty: list[str]) -> None:
    if empty:
        raise DatasetError(f"{location} has no image in {', '.join(map(repr, empty))}; add images or remove the folder")


def _as_tuples(items: dict[str, list[Item]]) -> tuple[tuple[Item, ...], tuple[Item, ...], tuple[Item, ...]]:
    return tuple(items["train"]), tuple(items["val"]), tuple(items["test"])
