"""The readers of the paper's data sets, each on a miniature with the real layout."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from taskres_cache.datasets import ENTRIES, Dataset, load_dataset
from taskres_cache.datasets.word_lists import imagenet_names, imagenet_wnids
from taskres_cache.errors import DatasetError
from taskres_cache.recipe import Recipe
from tests.datasets.paper.miniatures import (
    LAYOUTS,
    MISSILES,
    WITH_SPLIT_FILE,
    WNIDS,
    Line,
    write_images,
    write_miniature,
    write_miniature_with_split,
)

FIFTHS_FROM_TRAINVAL = ("oxford_pets", "stanford_cars", "sun397", "ucf101")
HALVES_OF_EACH_CLASS = ("caltech101", "oxford_flowers", "food101", "dtd", "eurosat")


def triples(dataset: Dataset, part: str) -> list[tuple[str, int, str]]:
    return [(item.path, item.label, dataset.classnames[item.label]) for item in dataset.partitions[part]]


def official(lines: list[Line], part: str) -> list[tuple[str, int, str]]:
    return [(line.path, line.label, line.classname) for line in lines if line.part == part]


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_a_split_file_is_read_to_the_last_position(name: str, tmp_path: Path) -> None:
    split = write_miniature_with_split(name, tmp_path)
    folder, (file, prefix), _ = LAYOUTS[name]
    dataset = load_dataset(name, tmp_path)
    for part, entries in split.items():
        listed = [((f"{prefix}/" if prefix else "") + path, label, classname) for path, label, classname in entries]
        assert triples(dataset, part) == listed
    assert all((tmp_path / folder / item.path).is_file() for item in dataset.train)
    assert dataset.source.location == tmp_path / folder
    assert dataset.split.startswith(f"{file}, sha256 ")
    assert dataset.notes == ()
    assert dataset.train[3].where == f"{folder}/{file} train[3]"


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_without_its_split_file_a_split_is_built(name: str, tmp_path: Path) -> None:
    lines = write_miniature(name, tmp_path)
    dataset = load_dataset(name, tmp_path)
    train, val, test = (triples(dataset, part) for part in ("train", "val", "test"))
    assert sorted(train + val + test) == sorted((line.path, line.label, line.classname) for line in lines)
    assert load_dataset(name, tmp_path) == dataset
    per_class = [Counter(label for _, label, _ in part) for part in (train, val, test)]
    if name in FIFTHS_FROM_TRAINVAL:
        assert test == official(lines, "test")
        assert sorted(train + val) == sorted(official(lines, "trainval"))
        assert [set(counts.values()) for counts in per_class] == [{6}, {1}, {3}]  # round(7 / 5) = 1
    else:
        assert name in HALVES_OF_EACH_CLASS
        assert [set(counts.values()) for counts in per_class] == [{5}, {2}, {3}]
    (note,) = dataset.notes
    assert f"{LAYOUTS[name][0]}/{LAYOUTS[name][1][0]} is missing" in note
    assert dataset.split.startswith("built: ")


def test_a_built_split_has_its_own_seed(tmp_path: Path) -> None:
    lines = write_miniature("dtd", tmp_path)
    random.seed(5)
    before = random.getstate()
    dataset = load_dataset("dtd", tmp_path)
    assert random.getstate() == before
    rng, expected = random.Random(0), []
    for label in range(4):
        members = [line.path for line in lines if line.label == label]
        rng.shuffle(members)
        expected += members[5:7]
    assert [item.path for item in dataset.val] == expected


def test_aircraft_come_from_the_official_lists(tmp_path: Path) -> None:
    lines = write_miniature("fgvc_aircraft", tmp_path)
    dataset = load_dataset("fgvc_aircraft", tmp_path)
    for part in ("train", "val", "test"):
        assert triples(dataset, part) == official(lines, part)
    assert dataset.classnames == ("707-320", "A340-300", "Boeing 717", "DHC-8-100")
    assert dataset.test[0].where == "fgvc_aircraft/images_variant_test.txt line 1"


def test_imagenet_is_tested_on_its_val_folder(tmp_path: Path) -> None:
    lines = write_miniature("imagenet", tmp_path)
    dataset = load_dataset("imagenet", tmp_path)
    assert triples(dataset, "train") == official(lines, "train")
    assert triples(dataset, "test") == official(lines, "test")
    assert dataset.val == ()
    assert dataset.class_ids == WNIDS
    assert dataset.classnames == ("ostrich", "brambling", "missile", "missile")
    assert dataset.recipe == Recipe(lr=2e-4)
    assert dataset.templates[0] == "a photo of a {}."
    assert len(dataset.templates) == 8


@pytest.mark.parametrize("name", ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"])
def test_shifted_sets_are_test_only(name: str, tmp_path: Path) -> None:
    lines = write_miniature(name, tmp_path)
    dataset = load_dataset(name, tmp_path)
    assert dataset.test_only
    assert triples(dataset, "test") == official(lines, "test")
    wanted = {"imagenet_a": WNIDS[1:], "imagenet_r": (WNIDS[0], WNIDS[3])}.get(name, WNIDS)
    assert dataset.class_ids == wanted


def test_the_classnames_file_takes_precedence(tmp_path: Path) -> None:
    write_miniature("imagenet", tmp_path)
    write_miniature("imagenetv2", tmp_path)
    named = "".join(f"{wnid} own {number}\n" for number, wnid in enumerate(sorted(WNIDS)))
    (tmp_path / "imagenet" / "classnames.txt").write_text(named)
    assert load_dataset("imagenet", tmp_path).classnames == ("own 0", "own 1", "own 2", "own 3")
    # Folder names of ImageNetV2 are line numbers of its own file.
    names = [f"{wnid} {name}" for wnid, name in imagenet_names().items()]
    (tmp_path / "imagenetv2" / "classnames.txt").write_text("\n".join([*names[:10], "n01530575 finch", *names[11:]]))
    assert load_dataset("imagenetv2", tmp_path).classnames == ("ostrich", "finch", "missile", "missile")


def test_word_lists_of_the_libraries() -> None:
    names = imagenet_names()
    assert (len(names), list(names) == sorted(names)) == (1000, True)
    assert (names["n01440764"], names["n02134084"], names["n15075141"]) == ("tench", "polar bear", "toilet paper")
    assert [wnid for wnid, name in names.items() if name == "missile"] == list(MISSILES)
    for subset in ("imagenet_a", "imagenet_r"):
        wnids = imagenet_wnids(subset)
        assert len(wnids) == 200
        assert set(wnids) <= set(names)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("oxford_pets", "a photo of a {}, a type of pet."),
        ("oxford_flowers", "a photo of a {}, a type of flower."),
        ("fgvc_aircraft", "a photo of a {}, a type of aircraft."),
        ("dtd", "{} texture."),
        ("eurosat", "a centered satellite photo of {}."),
        ("food101", "a photo of {}, a type of food."),
        ("ucf101", "a photo of a person doing {}."),
        ("caltech101", "a photo of a {}."),
        ("stanford_cars", "a photo of a {}."),
        ("sun397", "a photo of a {}."),
    ],
)
def test_prompts_are_the_papers(name: str, template: str, tmp_path: Path) -> None:
    write_miniature(name, tmp_path)
    assert load_dataset(name, tmp_path).templates == (template,)


def test_flowers_have_their_own_alpha(tmp_path: Path) -> None:
    write_miniature("oxford_flowers", tmp_path)
    assert load_dataset("oxford_flowers", tmp_path).recipe == Recipe(alpha=1.0)


def test_the_papers_data_sets_are_read_as_stored(tmp_path: Path) -> None:
    write_miniature("dtd", tmp_path)
    assert load_dataset("dtd", tmp_path).source.orientation == "stored"


def test_published_counts() -> None:
    counts = {name: entry.counts for name, entry in ENTRIES.items() if entry.counts}
    assert len(counts) == 15
    issued = {name: (c.train, c.val, c.test) for name, c in counts.items() if name in WITH_SPLIT_FILE}
    assert issued["caltech101"] == (4128, 1649, 2465)
    assert issued["dtd"] == (2820, 1128, 1692)
    assert issued["eurosat"] == (13500, 5400, 8100)
    assert issued["oxford_flowers"] == (4093, 1633, 2463)
    assert issued["oxford_pets"] == (2944, 736, 3669)
    assert issued["stanford_cars"] == (6509, 1635, 8041)


# Error messages are one line, with the file and the line or key.


def changed_split(name: str, root: Path, part: str, position: int, entry: list) -> None:
    folder, (file, _), _ = LAYOUTS[name]
    split = json.loads((root / folder / file).read_text())
    split[part][position] = entry
    (root / folder / file).write_text(json.dumps(split))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["a.jpg", 0, ""], r"Caltech101.json val\[1\]: .*a.jpg has label 0 and no class name"),
        (["a.jpg", 0, "other"], r"Caltech101.json val\[1\]: label 0 is 'other' here and 'face' in caltech-101/split"),
        (["a.jpg", 9, "kite"], r"Caltech101.json val\[1\] has label 9, but no entry has label 4"),
        (["a.jpg", 0], r"Caltech101.json val\[1\]: expected \[path, label, class name\], got \[\"a.jpg\", 0\]"),
        (["a.jpg", -1, "face"], r"val\[1\]: expected \[path, label, class name\]"),
        (["a.jpg", True, "face"], r"val\[1\]: expected \[path, label, class name\]"),
        (["a.jpg", 4, "kite"], r"no train image for 'kite'"),
    ],
)
def test_faulty_entries_of_a_split_file(entry: list, message: str, tmp_path: Path) -> None:
    write_miniature_with_split("caltech101", tmp_path)
    changed_split("caltech101", tmp_path, "val", 1, entry)
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset("caltech101", tmp_path)
    assert "\n" not in str(error.value)


def test_an_image_in_two_partitions(tmp_path: Path) -> None:
    split = write_miniature_with_split("eurosat", tmp_path)
    changed_split("eurosat", tmp_path, "test", 2, split["train"][4])
    with pytest.raises(DatasetError, match=r"EuroSAT.json train\[4\] and eurosat/split_zhou_EuroSAT.json test\[2\]"):
        load_dataset("eurosat", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid JSON"), ("[]", "expected the keys train, val"), ('{"train": []}', "val")],
)
def test_a_file_that_is_not_a_split_file(content: str, message: str, tmp_path: Path) -> None:
    write_miniature("dtd", tmp_path)
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset("dtd", tmp_path)


def damaged(file: str, content: str, message: str) -> object:
    return pytest.param(file, content, message, id=file)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        damaged("oxford_pets/annotations/test.txt", "Abyssinian_1 1\n", "test.txt line 1: expected <breed>_<number>"),
        damaged("oxford_pets/annotations/trainval.txt", "Abyssinian_1 0 1 1", "trainval.txt line 1: expected a label"),
        damaged("stanford_cars/devkit/cars_train_annos.mat", "no", "could not read 'annotations' from the MATLAB file"),
        damaged("oxford_flowers/cat_to_name.json", '{"1": "rose"}', r"labels\[0\]: cat_to_name.json has no name"),
        damaged("oxford_flowers/cat_to_name.json", "{", "cat_to_name.json is not valid JSON"),
        damaged("sun397/Testing_01.txt", "/a/abbey/1.jpg\n\n/z/zoo/2.jpg", "line 3: class '/z/zoo' is not in Class"),
        damaged("ucf101/ucfTrainTestlist/testlist01.txt", "Kiting/v.avi", "line 1: class 'Kiting' is not in cla"),
        damaged("ucf101/ucfTrainTestlist/classInd.txt", "Archery", "classInd.txt line 1: expected <label> <action>"),
        damaged("fgvc_aircraft/images_variant_val.txt", "1 A400M", "val.txt line 1: class 'A400M' is not in var"),
        damaged("imagenet/classnames.txt", "n01518878", "classnames.txt line 1: n01518878 has no class name"),
        damaged("imagenet/classnames.txt", "n01518878 a\nn01518878 b", "line 2: n01518878 is listed twice"),
        damaged("imagenet/classnames.txt", "n01518878 a", "n01530575 has no class name in classnames.txt"),
    ],
)  # fmt: skip
def test_faulty_annotations(file: str, content: str, message: str, tmp_path: Path) -> None:
    (name,) = [name for name, (folder, _, _) in LAYOUTS.items() if folder == file.split("/")[0]]
    write_miniature(name, tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset(name, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "stray", "message"),
    [
        ("imagenet", "images/val/n01440764/1.JPEG", "n01440764 has no counterpart in"),
        ("imagenetv2", "imagenetv2-matched-frequency-format-val/1000/1.jpeg", "expected folders 0 to 999"),
        ("imagenet_a", "imagenet-a/n99999999/1.jpg", "n99999999 has no class name in"),
    ],
)
def test_stray_class_folders(name: str, stray: str, message: str, tmp_path: Path) -> None:
    write_miniature(name, tmp_path)
    write_images(tmp_path / LAYOUTS[name][0], [Line(stray, 0, "", "")])
    with pytest.raises(DatasetError, match=message):
        load_dataset(name, tmp_path)


def test_images_outside_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "imagenet", [Line(f"images/{part}/1.JPEG", 0, "", "") for part in ("train", "val")])
    with pytest.raises(DatasetError, match="images/train has no class folders"):
        load_dataset("imagenet", tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    folder = LAYOUTS[name][0]
    assert ENTRIES[name].missing(tmp_path) == (f"{folder}/",)
    (tmp_path / folder).mkdir()
    missing = ENTRIES[name].missing(tmp_path)
    assert missing
    assert all(path.startswith(f"{folder}/") for path in missing)
    with pytest.raises(
        DatasetError, match=f"{name}' is incomplete, missing {tmp_path / missing[0]}.*taskres datasets --root"
    ) as error:
        load_dataset(name, tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / folder).rmdir()
    write_miniature(name, tmp_path)
    assert ENTRIES[name].missing(tmp_path) == ()


def test_missing_annotations_are_reported_as_the_missing_split_file(tmp_path: Path) -> None:
    write_miniature("stanford_cars", tmp_path)
    (tmp_path / "stanford_cars" / "devkit" / "cars_meta.mat").unlink()
    assert ENTRIES["stanford_cars"].missing(tmp_path) == ("stanford_cars/split_zhou_StanfordCars.json",)


def test_split_files_from_other_machines_are_read(tmp_path: Path) -> None:
    split = write_miniature_with_split("dtd", tmp_path)
    before = load_dataset("dtd", tmp_path)
    file = tmp_path / "dtd" / LAYOUTS["dtd"][1][0]
    for change in ("/{}", "./{}", "//{}"):
        changed = {part: [[change.format(path), *rest] for path, *rest in lines] for part, lines in split.items()}
        file.write_text("\ufeff" + json.dumps(changed), encoding="utf-8")
        after = load_dataset("dtd", tmp_path)
        assert [triples(after, part) for part in split] == [triples(before, part) for part in split]
    changed = {part: [[path.replace("/", "\\"), *rest] for path, *rest in lines] for part, lines in split.items()}
    file.write_text(json.dumps(changed))
    assert triples(load_dataset("dtd", tmp_path), "test") == triples(before, "test")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["../../secret.png", 0, "a"], "is not a path below the image folder"),
        (["/", 0, "a"], "is not a path below the image folder"),
        (["a\0.png", 0, "a"], "is not a path below the image folder"),
        (["a.png", "9" * 5000, "a"], "expected .path, label, class name"),
        (["a.png", True, "a"], "expected .path, label, class name"),
        (["a.png", "\u0663", "a"], "expected .path, label, class name"),
        (["a.png", 0, "\ud800"], "is not Unicode text"),
        ("a.png", "expected .path, label, class name"),
    ],
)
def test_a_hostile_entry_of_a_split_file_is_named(tmp_path: Path, entry: object, message: str) -> None:
    split = write_miniature_with_split("dtd", tmp_path)
    file = tmp_path / "dtd" / LAYOUTS["dtd"][1][0]
    file.write_text(json.dumps({**split, "val": [entry]}))
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset("dtd", tmp_path)
    assert "val[0]" in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe{", b'{"train": 9' + b"9" * 5000, b"null", b""])
def test_a_split_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    write_miniature_with_split("dtd", tmp_path)
    (tmp_path / "dtd" / LAYOUTS["dtd"][1][0]).write_bytes(content)
    with pytest.raises(DatasetError, match="get an intact copy"):
        load_dataset("dtd", tmp_path)


def test_imagenetv2_has_folders_by_index_or_by_wnid(tmp_path: Path) -> None:
    write_miniature("imagenetv2", tmp_path)
    by_index = load_dataset("imagenetv2", tmp_path)
    images = tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    for folder in list(images.iterdir()):
        folder.rename(images / imagenet_wnids()[int(folder.name)])
    by_wnid = load_dataset("imagenetv2", tmp_path)
    assert (by_wnid.classnames, by_wnid.class_ids) == (by_index.classnames, by_index.class_ids)
    assert [item.label for item in by_wnid.test] == [item.label for item in by_index.test]


def test_a_byte_order_mark_before_class_names_is_skipped(tmp_path: Path) -> None:
    write_miniature("imagenetv2", tmp_path)
    names = [f"{wnid} {name}" for wnid, name in imagenet_names().items()]
    (tmp_path / "imagenetv2" / "classnames.txt").write_text("\ufeff" + "\n".join(names), encoding="utf-8")
    assert load_dataset("imagenetv2", tmp_path).class_ids is not None
