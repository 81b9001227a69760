"""ImageNet and its shifted test sets: one folder per class, named by WordNet identifier (wnid) or class index."""

import os
from pathlib import Path

from taskres_cache.datasets.dataset import Item
from taskres_cache.datasets.images import is_image_name
from taskres_cache.datasets.paper.listing import Listing, read_lines
from taskres_cache.datasets.word_lists import imagenet_names
from taskres_cache.errors import DatasetError

TRAIN_FOLDER, VAL_FOLDER = "images/train", "images/val"
CLASSNAMES_FILE = "classnames.txt"


def read_imagenet(folder: Path) -> Listing:
    """Read ImageNet: the official val set is the test partition, and val is empty (CoOp's protocol).

    Labels are the sorted wnids of the train folders, and images are sorted by name. CoOp uses the order of the file
    system, so its few-shot draws differ between machines; these do not.
    """
    wnids = _class_folders(folder / TRAIN_FOLDER)
    tested = _class_folders(folder / VAL_FOLDER)
    stray = next((wnid for wnid in tested if wnid not in wnids), None)
    if stray is not None:
        raise DatasetError(
            f"{folder / VAL_FOLDER / stray} has no counterpart in {folder / TRAIN_FOLDER}; unpack both archives"
        )
    names = class_names(folder)
    return Listing(
        train=_items(folder, TRAIN_FOLDER, wnids, wnids),
        val=(),
        test=_items(folder, VAL_FOLDER, tested, wnids),
        classnames=tuple(_name_of(wnid, names, folder / TRAIN_FOLDER / wnid) for wnid in wnids),
        split="official train and val folders",
        class_ids=tuple(wnids),
    )


def read_wnid_folders(folder: Path, images: str) -> Listing:
    """Read a shifted test set with one folder per wnid: all of ImageNet's (Sketch) or 200 of them (A, R)."""
    wnids = _class_folders(folder / images)
    names = class_names(folder)
    classnames = tuple(_name_of(wnid, names, folder / images / wnid) for wnid in wnids)
    return _test_only(_items(folder, images, wnids, wnids), classnames, tuple(wnids))


def read_index_folders(folder: Path, images: str) -> Listing:
    """Read a shifted test set with folders named by class index, 0 to 999, or by wnid (ImageNetV2 has both)."""
    names = class_names(folder)
    wnids = list(names)
    found = _class_folders(folder / images)
    if all(name in names for name in found):
        return read_wnid_folders(folder, images)
    stray = next((name for name in found if not name.isdecimal() or int(name) >= len(wnids)), None)
    if stray is not None:
        raise DatasetError(
            f"{folder / images / stray}: expected folders 0 to {len(wnids) - 1} or wnids; unpack the archive again"
        )
    found.sort(key=int)
    class_ids = tuple(wnids[int(name)] for name in found)
    return _test_only(_items(folder, images, found, found), tuple(names[wnid] for wnid in class_ids), class_ids)


def class_names(folder: Path) -> dict[str, str]:
    """Return class names by wnid, in label order, from CoOp's `classnames.txt` if it exists, else OpenAI's list."""
    file = folder / CLASSNAMES_FILE
    if not file.is_file():
        return imagenet_names()
    names: dict[str, str] = {}
    for where, line in read_lines(file):
        wnid, _, name = line.replace("\t", " ").partition(" ")
        if not name.strip():
            raise DatasetError(f"{where}: {wnid} has no class name; expected lines such as 'n01440764 tench'")
        if wnid in names:
            raise DatasetError(f"{where}: {wnid} is listed twice; expected one line per class")
        names[wnid] = name.strip()
    return names


def _test_only(test: tuple[Item, ...], classnames: tuple[str, ...], class_ids: tuple[str, ...]) -> Listing:
    return Listing((), (), test, classnames, "test only", class_ids)


def _class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden ones; there must be one."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"could not read {folder} ({error.strerror}); unpack the images there") from error
    if not found:
        raise DatasetError(f"{folder} has no class folders (n01440764, ...); sort the images into one folder per class")
    return found


def _items(folder: Path, images: str, found: list[str], classes: list[str]) -> tuple[Item, ...]:
    """Return the images of class folders, class by class, sorted by name."""
    label_of = {name: label for label, name in enumerate(classes)}
    items: list[Item] = []
    for name in found:
        files = sorted(file for file in os.listdir(folder / images / name) if is_image_name(file))
        items += [Item(f"{images}/{name}/{file}", label_of[name]) for file in files]
    return tuple(items)


def _name_of(wnid: str, names: dict[str, str], where: Path) -> str:
    if wnid not in names:
        raise DatasetError(
            f"{where}: {wnid} has no class name in {CLASSNAMES_FILE} or ImageNet's list; add one or remove the folder"
        )
    return names[wnid]
