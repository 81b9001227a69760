"""Readers of the paper's data sets from their official annotations, as CoOp reads them; one function per layout.

Each takes the data set's folder and returns its listing. If the annotations do not define a split, it is built by
CoOp's rule from sorted names with a fixed seed, so it is the same everywhere.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from taskres_cache.datasets.images import is_image_name
from taskres_cache.datasets.paper.listing import (
    BUILD_SEED,
    Labelled,
    Listing,
    listing_of,
    read_bytes,
    read_lines,
    short,
    split_each_class,
    split_trainval,
)
from taskres_cache.errors import DatasetError

SPLIT_OF_EACH_CLASS = f"built: 50/20/30 of each class, seed {BUILD_SEED}"
SPLIT_OF_TRAINVAL = f"built: a fifth of each class of the official train list is val, seed {BUILD_SEED}"

Builder = Callable[[Path], Listing]


def build_from_class_folders(
    images: str, renamed: Mapping[str, str] | None = None, ignored: tuple[str, ...] = ()
) -> Builder:
    """Return a builder for data sets with one folder per class: labels in sorted order, each class split 50/20/30.

    Parameters
    ----------
    images : str
        Folder of the class folders.
    renamed : mapping of str to str, optional
        Class names by folder, where they differ.
    ignored : tuple of str
        Folders that are not classes.
    """

    def build(folder: Path) -> Listing:
        names = sorted(path.name for path in (folder / images).iterdir() if path.is_dir() and path.name[0] != ".")
        lines = []
        for label, name in enumerate(name for name in names if name not in ignored):
            files = sorted(file.name for file in (folder / images / name).iterdir() if is_image_name(file.name))
            classname = (renamed or {}).get(name, name)
            lines += [Labelled(f"{images}/{name}/{file}", label, classname, f"{images}/{name}") for file in files]
        return listing_of(*split_each_class(lines), SPLIT_OF_EACH_CLASS)

    return build


def build_oxford_pets(folder: Path) -> Listing:
    """Read the pets: `annotations/trainval.txt` and `test.txt`, with lines `<breed>_<number> <label> ...`."""

    def read(name: str) -> list[Labelled]:
        lines = []
        for where, line in read_lines(folder / "annotations" / name):
            image, label, *_ = _fields(where, line, 4, "<breed>_<number> <label> <species> <breed of species>")
            breed = image.rpartition("_")[0].lower()
            lines.append(Labelled(f"images/{image}.jpg", _label(where, label), breed, where))
        return lines

    return listing_of(*split_trainval(read("trainval.txt")), read("test.txt"), SPLIT_OF_TRAINVAL)


def build_stanford_cars(folder: Path) -> Listing:
    """Read the cars: three MATLAB files; the year at the end of a class name moves to the front."""
    names = [str(name) for name in _records(folder / "devkit" / "cars_meta.mat", "class_names")]

    def read(images: str, file: Path) -> list[Labelled]:
        lines = []
        for number, record in enumerate(_records(file, "annotations")):
            where = f"{short(file)} annotations[{number}]"
            try:
                label, image = int(record["class"]) - 1, str(record["fname"])
                model, _, year = names[label].rpartition(" ")
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise DatasetError(
                    f"{where}: expected fname and a class from 1 to {len(names)} ({error!r}); get an intact copy"
                ) from error
            lines.append(Labelled(f"{images}/{image}", label, f"{year} {model}", where))
        return lines

    train, val = split_trainval(read("cars_train", folder / "devkit" / "cars_train_annos.mat"))
    test = read("cars_test", folder / "cars_test_annos_withlabels.mat")
    return listing_of(train, val, test, SPLIT_OF_TRAINVAL)


def build_oxford_flowers(folder: Path) -> Listing:
    """Read the flowers: labels, counted from 1, in `imagelabels.mat`, and their names in `cat_to_name.json`."""
    try:
        names = json.loads(read_bytes(folder / "cat_to_name.json"))
    except ValueError as error:
        raise DatasetError(f"{folder / 'cat_to_name.json'} is not valid JSON ({error}); get an intact copy") from error
    lines = []
    for number, label in enumerate(_records(folder / "imagelabels.mat", "labels")):
        where = f"{folder.name}/imagelabels.mat labels[{number}]"
        if str(label) not in names:
            raise DatasetError(f"{where}: cat_to_name.json has no name for label {label}; get intact copies of both")
        lines.append(Labelled(f"jpg/image_{number + 1:05}.jpg", int(label) - 1, names[str(label)], where))
    return listing_of(*split_each_class(lines), SPLIT_OF_EACH_CLASS)


def build_sun397(folder: Path) -> Listing:
    """Read the scenes: lines `/a/airplane_cabin/sun_x.jpg`; the class name of `/a/apse/indoor` is `indoor apse`."""
    label_of = {line: label for label, (_, line) in enumerate(read_lines(folder / "ClassName.txt"))}

    def read(name: str) -> list[Labelled]:
        lines = []
        for where, line in read_lines(folder / name):
            category = line.rpartition("/")[0]
            label = _known(where, category, label_of, "ClassName.txt")
            words = category.split("/")[2:]  # without the leading slash and the initial letter
            lines.append(Labelled(f"SUN397{line}", label, " ".join(reversed(words)), where))
        return lines

    return listing_of(*split_trainval(read("Training_01.txt")), read("Testing_01.txt"), SPLIT_OF_TRAINVAL)


def build_ucf101(folder: Path) -> Listing:
    """Read the actions: lines `ApplyEyeMakeup/v_x.avi 1`; the middle frame is `Apply_Eye_Makeup/v_x.jpg`."""
    lists = folder / "ucfTrainTestlist"
    label_of = {}
    for where, line in read_lines(lists / "classInd.txt"):
        label, action = _fields(where, line, 2, "<label> <action>")
        label_of[action] = _label(where, label)

    def read(name: str) -> list[Labelled]:
        lines = []
        for where, line in read_lines(lists / name):
            action, _, video = line.split(" ")[0].partition("/")
            label = _known(where, action, label_of, "classInd.txt")
            classname = "_".join(re.findall("[A-Z][^A-Z]*", action))
            frame = f"UCF-101-midframes/{classname}/{video.removesuffix('.avi')}.jpg"
            lines.append(Labelled(frame, label, classname, where))
        return lines

    return listing_of(*split_trainval(read("trainlist01.txt")), read("testlist01.txt"), SPLIT_OF_TRAINVAL)


def read_fgvc_aircraft(folder: Path) -> Listing:
    """Read the aircraft: the official lists `images_variant_{train,val,test}.txt`, with lines `<image> <variant>`."""
    label_of = {line: label for label, (_, line) in enumerate(read_lines(folder / "variants.txt"))}

    def read(partition: str) -> list[Labelled]:
        lines = []
        for where, line in read_lines(folder / f"images_variant_{partition}.txt"):
            image, _, variant = line.partition(" ")
            label = _known(where, variant, label_of, "variants.txt")
            lines.append(Labelled(f"images/{image}.jpg", label, variant, where))
        return lines

    return listing_of(read("train"), read("val"), read("test"), "official variant lists")


def _records(file: Path, name: str) -> list[Any]:
    """Return the entries of an array in a MATLAB file."""
    from scipy.io import loadmat  # takes 0.2 s to import, and few data sets need it

    try:
        records = loadmat(file, simplify_cells=True)[name]
    except Exception as error:  # scipy raises many types of exception for a damaged file
        raise DatasetError(
            f"could not read {name!r} from the MATLAB file {file} ({error}); get an intact copy"
        ) from error
    return [records] if isinstance(records, dict | str) else list(records)


def _fields(where: str, line: str, count: int, expected: str) -> list[str]:
    fields = line.split(" ")
    if len(fields) != count:
        raise DatasetError(f"{where}: expected {expected}, got {line!r}; get an intact copy")
    return fields


def _label(where: str, text: str) -> int:
    """Return a label that is counted from 1 in the file."""
    if not text.isdecimal() or int(text) < 1:
        raise DatasetError(f"{where}: expected a label of 1 or more, got {text!r}; get an intact copy")
    return int(text) - 1


def _known(where: str, name: str, label_of: Mapping[str, int], file: str) -> int:
    if name not in label_of:
        raise DatasetError(f"{where}: class {name!r} is not in {file}; get intact copies of both")
    return label_of[name]
