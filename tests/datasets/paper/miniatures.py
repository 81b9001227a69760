"""The paper's data sets in miniature: real folder layouts, real image files, annotations in the official formats.

Each writer fills a folder below a root and returns what a reader must find, in the order of the official lists.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat

PER_CLASS = 10
MISSILES = ("n03773504", "n04008634")  # two ImageNet classes with the same name
WNIDS = ("n01518878", "n01530575", *MISSILES)
INDEX_OF = {"n01518878": 9, "n01530575": 10, "n03773504": 657, "n04008634": 744}  # as text, "10" sorts before "9"


class Line(NamedTuple):
    """One image in the official annotations; `part` is empty if they do not define a split."""

    path: str
    label: int
    classname: str
    part: str


Writer = Callable[[Path], list[Line]]


def write_images(folder: Path, lines: Sequence[Line]) -> None:
    """Write a small real image for each line: the colour of its class with noise."""
    for number, line in enumerate(lines):
        rng = np.random.default_rng([number, line.label])
        colour = np.random.default_rng(line.label).integers(0, 256, 3)
        pixels = (colour + rng.integers(-40, 41, (24, 32, 3))).clip(0, 255).astype(np.uint8)
        file = folder / line.path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, format="PNG" if file.suffix == ".png" else "JPEG")


def write_split_file(file: Path, lines: Sequence[Line], prefix: str, seed: int = 0) -> dict[str, list[list]]:
    """Write CoOp's split file of the lines: 5 train, 2 val and 3 test images per class, classes shuffled."""
    rng = Random(seed)
    labels = sorted({line.label for line in lines})
    rng.shuffle(labels)
    split: dict[str, list[list]] = {"train": [], "val": [], "test": []}
    for label in labels:
        members = [line for line in lines if line.label == label]
        rng.shuffle(members)
        for part, count in (("train", 5), ("val", 2), ("test", 3)):
            chosen, members = members[:count], members[count:]
            split[part] += [[line.path.removeprefix(prefix).lstrip("/"), label, line.classname] for line in chosen]
    file.write_text(json.dumps(split))
    return split


def class_folders(
    images: str, names: dict[str, str], file: str = "{folder}_{number:04}.jpg", ignored: Sequence[str] = ()
) -> Writer:
    """Return a writer for a data set with one folder per class; `names` maps folders to class names."""

    def write(folder: Path) -> list[Line]:
        lines = [
            Line(f"{images}/{name}/{file.format(folder=name, number=number)}", label, names[name], "")
            for label, name in enumerate(sorted(names))
            for number in range(PER_CLASS)
        ]
        strays = [Line(f"{images}/{name}/stray.jpg", 0, "", "") for name in ignored]
        write_images(folder, [*lines, *strays])
        (folder / images / "notes.txt").write_text("not a class")
        return lines

    return write


def write_pets(folder: Path) -> list[Line]:
    breeds = ["Abyssinian", "american_bulldog", "Egyptian_Mau", "saint_bernard"]
    lines = []
    for part, numbers in (("trainval", range(7)), ("test", range(7, PER_CLASS))):
        listed = [
            Line(f"images/{breed}_{number + 1}.jpg", label, breed.lower(), part)
            for label, breed in enumerate(breeds)
            for number in numbers
        ]
        text = "".join(f"{Path(line.path).stem} {line.label + 1} 1 1\n" for line in listed)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{part}.txt").write_text(text)
        lines += listed
    write_images(folder, lines)
    return lines


def write_cars(folder: Path) -> list[Line]:
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012", "Volvo 240 Sedan 1993"]
    spoken = ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Acura TL Sedan", "1993 Volvo 240 Sedan"]
    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    lines = []
    for part, count, file in (
        ("train", 28, folder / "devkit" / "cars_train_annos.mat"),
        ("test", 12, folder / "cars_test_annos_withlabels.mat"),
    ):
        labels = [(number * 3 + 1) % 4 for number in range(count)]
        fields = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
        records = [(39, label + 1, f"{number + 1:05}.jpg") for number, label in enumerate(labels)]
        savemat(file, {"annotations": np.array([records], dtype=fields)})
        where = "trainval" if part == "train" else "test"
        lines += [
            Line(f"cars_{part}/{number + 1:05}.jpg", label, spoken[label], where) for number, label in enumerate(labels)
        ]
    write_images(folder, lines)
    return lines


def write_flowers(folder: Path) -> list[Line]:
    names = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea"]
    labels = [(number * 3 + 2) % 4 for number in range(4 * PER_CLASS)]
    savemat(folder / "imagelabels.mat", {"labels": np.array([[label + 1 for label in labels]], np.uint8)})
    (folder / "cat_to_name.json").write_text(json.dumps({str(number + 1): name for number, name in enumerate(names)}))
    lines = [Line(f"jpg/image_{n + 1:05}.jpg", label, names[label], "") for n, label in enumerate(labels)]
    write_images(folder, lines)
    return lines


def write_aircraft(folder: Path) -> list[Line]:
    variants = ["707-320", "A340-300", "Boeing 717", "DHC-8-100"]
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in variants))
    lines = []
    for part, count in (("train", 20), ("val", 8), ("test", 12)):
        start = len(lines)
        listed = [
            Line(f"images/{start + number:07}.jpg", (number * 3 + 1) % 4, variants[(number * 3 + 1) % 4], part)
            for number in range(count)
        ]
        text = "".join(f"{Path(line.path).stem} {line.classname}\n" for line in listed)
        (folder / f"images_variant_{part}.txt").write_text(text)
        lines += listed
    write_images(folder, lines)
    return lines


def write_sun397(folder: Path) -> list[Line]:
    categories = ["/a/abbey", "/a/apse/indoor", "/b/bow_window/outdoor", "/y/youth_hostel"]
    spoken = ["abbey", "indoor apse", "outdoor bow_window", "youth_hostel"]
    (folder / "ClassName.txt").write_text("".join(f"{category}\n" for category in categories))
    lines = []
    for name, part, numbers in (("Training_01", "trainval", range(7)), ("Testing_01", "test", range(7, PER_CLASS))):
        listed = [
            Line(f"SUN397{category}/sun_{number:02}.jpg", label, spoken[label], part)
            for label, category in enumerate(categories)
            for number in numbers
        ]
        (folder / f"{name}.txt").write_text("".join(f"{line.path.removeprefix('SUN397')}\n" for line in listed))
        lines += listed
    write_images(folder, lines)
    return lines


def write_ucf101(folder: Path) -> list[Line]:
    actions = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "Archery": "Archery", "TaiChi": "Tai_Chi", "YoYo": "Yo_Yo"}
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{number} {name}\r\n" for number, name in enumerate(actions, start=1)))
    lines = []
    for name, part, groups in (("testlist01", "test", range(3)), ("trainlist01", "trainval", range(3, PER_CLASS))):
        listed, text = [], ""
        for label, (action, spoken) in enumerate(actions.items()):
            for group in groups:
                listed.append(Line(f"UCF-101-midframes/{spoken}/v_{action}_g{group:02}_c01.jpg", label, spoken, part))
                text += f"{action}/v_{action}_g{group:02}_c01.avi{f' {label + 1}' if part == 'trainval' else ''}\n"
        (lists / f"{name}.txt").write_text(text)
        lines += listed
    write_images(folder, lines)
    return lines


def write_imagenet(folder: Path) -> list[Line]:
    names = ["ostrich", "brambling", "missile", "missile"]
    lines = [
        Line(f"images/{part}/{wnid}/{wnid}_{number}.JPEG", label, names[label], where)
        for part, where, count in (("train", "train", 6), ("val", "test", 4))
        for label, wnid in enumerate(WNIDS)
        for number in range(count)
    ]
    write_images(folder, lines)
    return lines


def shifted(images: str, wnids: Sequence[str], suffix: str = "jpg") -> Writer:
    """Return a writer for a shifted test set with one folder per wnid, and the README of ImageNet-A and -R."""
    names = dict(zip(WNIDS, ("ostrich", "brambling", "missile", "missile"), strict=True))

    def write(folder: Path) -> list[Line]:
        lines = [
            Line(f"{images}/{wnid}/{number}.{suffix}", label, names[wnid], "test")
            for label, wnid in enumerate(wnids)
            for number in range(3)
        ]
        write_images(folder, lines)
        (folder / images / "README.txt").write_text("not a class")
        return lines

    return write


def write_imagenetv2(folder: Path) -> list[Line]:
    images = "imagenetv2-matched-frequency-format-val"
    names = ["ostrich", "brambling", "missile", "missile"]
    lines = [
        Line(f"{images}/{INDEX_OF[wnid]}/{number:04x}.jpeg", label, names[label], "test")
        for label, wnid in enumerate(WNIDS)
        for number in range(3)
    ]
    write_images(folder, lines)
    return lines


CALTECH = {"Faces": "face", "Leopards": "leopard", "accordion": "accordion", "crocodile_head": "crocodile_head"}
EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "Highway": "Highway or Road",
    "SeaLake": "Sea or Lake",
}
SAME_NAMES = {
    "food101": ["apple_pie", "baby_back_ribs", "waffles", "tiramisu"],
    "dtd": ["banded", "blotchy", "zigzagged", "woven"],
}

# name -> folder below the root, split file and the folder of its paths (or None), writer
LAYOUTS: dict[str, tuple[str, tuple[str, str] | None, Writer]] = {
    "imagenet": ("imagenet", None, write_imagenet),
    "caltech101": (
        "caltech-101",
        ("split_zhou_Caltech101.json", "101_ObjectCategories"),
        class_folders("101_ObjectCategories", CALTECH, ignored=("BACKGROUND_Google", "Faces_easy")),
    ),
    "oxford_pets": ("oxford_pets", ("split_zhou_OxfordPets.json", "images"), write_pets),
    "stanford_cars": ("stanford_cars", ("split_zhou_StanfordCars.json", ""), write_cars),
    "oxford_flowers": ("oxford_flowers", ("split_zhou_OxfordFlowers.json", "jpg"), write_flowers),
    "food101": (
        "food-101",
        ("split_zhou_Food101.json", "images"),
        class_folders("images", {name: name for name in SAME_NAMES["food101"]}, file="{number}.jpg"),
    ),
    "fgvc_aircraft": ("fgvc_aircraft", None, write_aircraft),
    "sun397": ("sun397", ("split_zhou_SUN397.json", "SUN397"), write_sun397),
    "dtd": (
        "dtd",
        ("split_zhou_DescribableTextures.json", "images"),
        class_folders("images", {name: name for name in SAME_NAMES["dtd"]}),
    ),
    "eurosat": (
        "eurosat",
        ("split_zhou_EuroSAT.json", "2750"),
        class_folders("2750", EUROSAT, file="{folder}_{number}.jpg"),
    ),
    "ucf101": ("ucf101", ("split_zhou_UCF101.json", "UCF-101-midframes"), write_ucf101),
    "imagenetv2": ("imagenetv2", None, write_imagenetv2),
    "imagenet_sketch": ("imagenet-sketch", None, shifted("images", WNIDS, "png")),
    "imagenet_a": ("imagenet-adversarial", None, shifted("imagenet-a", WNIDS[1:])),
    "imagenet_r": ("imagenet-rendition", None, shifted("imagenet-r", (WNIDS[0], WNIDS[3]))),
}
WITH_SPLIT_FILE = [name for name, (_, split_file, _) in LAYOUTS.items() if split_file]


def write_miniature(name: str, root: Path) -> list[Line]:
    """Write one data set without its split file below a root; return its lines."""
    folder = root / LAYOUTS[name][0]
    folder.mkdir(parents=True)
    return LAYOUTS[name][2](folder)


def write_miniature_with_split(name: str, root: Path) -> dict[str, list[list]]:
    """Write one data set with its split file below a root; return the content of the file."""
    folder, split_file, _ = LAYOUTS[name]
    assert split_file is not None
    lines = write_miniature(name, root)
    return write_split_file(root / folder / split_file[0], lines, split_file[1])


def write_all(root: Path) -> None:
    """Write all fifteen below a root, with their split files."""
    for name in LAYOUTS:
        (write_miniature_with_split if name in WITH_SPLIT_FILE else write_miniature)(name, root)
