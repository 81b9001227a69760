"""CSV, TSV and JSON Lines as people have them: every row is used, counted, or refused with its place."""

import json
import os
from pathlib import Path

import pytest

from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.errors import DatasetError, OptionError, TaskresError
from tests.conftest import Taskres, one_line, save_image

CLASSES = ("cat", "dog")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder with ten images of two classes each, not in class folders."""
    for number in range(20):
        save_image(tmp_path / "images" / f"{number}.png", number, (8, 8))
    return tmp_path


def labelled(separator: str = ",") -> list[str]:
    return [f"images/{number}.png{separator}{CLASSES[number % 2]}" for number in range(20)]


def write(folder: Path, name: str, *lines: str, encoding: str = "utf-8") -> str:
    (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return str(folder / name)


def pairs(dataset: Dataset) -> set[tuple[str, str]]:
    return {(item.path, dataset.classnames[item.label]) for part in dataset.partitions.values() for item in part}


EXPECTED = {(f"images/{number}.png", CLASSES[number % 2]) for number in range(20)}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.csv", ["path,label", *labelled()]),
        ("a.csv", ["File Name;Class", *labelled(";")]),
        ("a.csv", ["image|species", *labelled("|")]),
        ("a.csv", labelled()),
        ("a.tsv", labelled("\t")),
        ("a.tsv", ["label\tfilename", *("\t".join(reversed(row.split(","))) for row in labelled())]),
        ("A.CSV", ["what,where", *(",".join(reversed(row.split(","))) for row in labelled())]),
        ("a.csv", ["", "path,label", "", *(f'"{row.replace(",", """"," """)}"' for row in labelled()), ",", ""]),
        ("a.csv", ["path,label,", *(f"{row}," for row in labelled())]),
        ("a.csv", ["path,label", *(f"./images/../{row}" for row in labelled())]),
        ("a.csv", ["path,label", *(row.replace("/", "\\") for row in labelled())]),
        ("a.jsonl", [json.dumps(dict(zip(("file_name", "label"), row.split(","), strict=True))) for row in labelled()]),
        ("a.ndjson", ["", *(json.dumps({"boxes": [], "img": r.split(",")[0], "y": r[-3:]}) for r in labelled())]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_one_list_in_many_forms(pets: Path, name: str, lines: list[str], encoding: str) -> None:
    dataset = load_dataset(write(pets, name, *lines, encoding=encoding))
    assert pairs(dataset) == EXPECTED
    assert (dataset.name.lower(), dataset.classnames, dataset.notes) == ("a", CLASSES, ())
    assert dataset.source.read(dataset.train[0].path).size == (8, 8)


def test_a_list_splits_as_the_folder_that_it_lists(photos: Path) -> None:
    files = sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.*"))
    folder = load_dataset(str(photos))
    rows = [f"{file},{Path(file).parent.name}" for file in files]
    listed = load_dataset(write(photos, "list.csv", "path,label", *rows))
    for part, items in folder.partitions.items():
        assert [item.path for item in listed.partitions[part]] == [item.path for item in items]
    assert (listed.split, listed.source) == (folder.split, folder.source)


def test_given_parts_are_kept(pets: Path) -> None:
    parts = ["train", "Validation", "test", "train", "test"]
    typed = write(pets, "a.csv", *(f"{row},{parts[number // 2 % 5]}" for number, row in enumerate(labelled())))
    dataset = load_dataset(typed)
    assert [len(part) for part in dataset.partitions.values()] == [8, 4, 8]
    assert dataset.split == "given"
    assert dataset.train[0].where == f"{typed}, row 1"
    assert load_dataset(typed, split_column="", label_column="2").split.startswith("60/20/20")


def test_columns_may_be_named(pets: Path) -> None:
    rows = [f"x.png,{row},{number % 3},train" for number, row in enumerate(labelled())]
    typed = write(pets, "a.csv", "other,photo file,kind,id,split", *rows)
    with pytest.raises(DatasetError, match="unclear which one has the image files; pass --path-column"):
        load_dataset(typed)
    with pytest.raises(DatasetError, match="unclear which one has the classes; pass --label-column"):
        load_dataset(typed, path_column="photo file")
    dataset = load_dataset(typed, path_column="photo file", label_column="Kind", split_column="")
    assert pairs(dataset) == EXPECTED
    numbers = load_dataset(typed, path_column="photo file", label_column="id", split_column="")
    assert numbers.classnames == ("0", "1", "2")
    with pytest.raises(OptionError, match="unknown column 'kid'.*did you mean 'kind' or 'id'"):
        load_dataset(typed, path_column="photo file", label_column="kid")
    with pytest.raises(OptionError, match="'digits' has no columns"):
        load_dataset("digits", label_column="kid")
    with pytest.raises(OptionError, match="has no columns"):
        load_dataset(str(pets), label_column="kid")


def test_of_several_columns_of_images_the_one_with_the_usual_name_is_used(pets: Path) -> None:
    rows = [f"thumbs/{number}.png,,{row}" for number, row in enumerate(labelled())]
    assert pairs(load_dataset(write(pets, "a.csv", "thumb,note,path,label", *rows))) == EXPECTED
    rows = [f"7,{row}" for row in labelled()]  # of several usual names, the one whose values are image files
    assert pairs(load_dataset(write(pets, "b.csv", "file,image,label", *rows))) == EXPECTED


def test_class_names_are_preferred_to_numbers_and_said(pets: Path) -> None:
    rows = [f"{row[:-4]},{number % 2},{row[-3:]}" for number, row in enumerate(labelled())]
    typed = write(pets, "a.csv", "path,label,class_name", *rows)
    dataset = load_dataset(typed)
    assert dataset.classnames == CLASSES
    assert any("column 'class_name'" in note and "not from 'label'" in note for note in dataset.notes)
    assert load_dataset(typed, label_column="label").classnames == ("0", "1")


def test_whole_numbers_of_pandas(pets: Path) -> None:
    typed = write(pets, "a.csv", "path,label", *(f"{row[:-4]},{n % 2 * 10}.0" for n, row in enumerate(labelled())))
    assert load_dataset(typed).classnames == ("0", "10")


def test_what_is_not_used_is_counted(pets: Path) -> None:
    rows = [*labelled(), "images/0.png,cat", "./images/1.png,dog", "a.pdf,cat", "b.webm,dog", "c.pdf,cat"]
    dataset = load_dataset(write(pets, "a.csv", "path,label", *rows))
    assert pairs(dataset) == EXPECTED
    assert dataset.notes == (
        "3 files not used: 2 .pdf, 1 .webm",
        "2 rows repeat an image of another row; each image is used once",
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("../secret.png,cat", "row 22: '../secret.png' is outside of"),
        ("/etc/secret.png,cat", "row 22: '/etc/secret.png' is outside of"),
        (r"..\secret.png,cat", "row 22: '../secret.png' is outside of"),
        (r"C:\images\1.png,cat", "row 22: 'C:/images/1.png' is outside of"),
        (r"\\server\share\1.png,cat", "row 22: '//server/share/1.png' is outside of"),
        ("images/../../x.png,cat", "is outside of"),
        ("https://example.org/1.png,cat", "row 22: 'https://example.org/1.png' is a URL, expected a file; download"),
        ("s3://bucket/1.png,cat", "is a URL"),
        ("file:///etc/1.png,cat", "is a URL"),
        ("images/1.png,", "row 22: no class, expected its name"),
        (",cat", "row 22: no path, expected an image file"),
        ("images/1.png", "row 22: 1 field, expected 2 as in the first row"),
        ("images/1.png,cat,dog,mouse", "row 22: 4 fields, expected 2 as in the first row"),
        ("images/1.png,cat", "row 22: 'images/1.png' has class 'dog' and 'cat' (first in"),
        ('"images/1.png,cat', "row 22: unexpected end of data; check its double quotes"),
        ("images/\0.png,cat", r"row 22: 'path' is 'images/\x00.png', which is not text"),
        ("x" * 200_000 + ",cat", "row 22: field larger than field limit"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(pets: Path, row: str, said: str) -> None:
    typed = write(pets, "a.csv", "path,label", *labelled(), row)
    with pytest.raises(DatasetError) as raised:
        load_dataset(typed)
    assert said in str(raised.value)
    assert typed in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "has no columns"),
        ("a.csv", b"path,label\n", "lists no image"),
        ("a.csv", b"images/1.png\n", "1 columns without names"),
        ("a.csv", b"path,label\nimages/1.png,caf\xe9\n", "line 2: byte 0xe9 is not UTF-8; if the file is Latin-1"),
        ("a.csv", b"\xff\xfep\x00a\x00\xd8", "is not valid UTF-16"),
        ("a.csv", b"path,label\nb/1.png,cat\nb/2.png,dog\n", "none of the 2 images of"),
        ("a.jsonl", b'{"path": "1.png", "label": "cat"\n', "line 1: "),
        ("a.jsonl", b'["1.png", "cat"]\n', "line 1: Expected `object`, got `array`; expected one object per line"),
        ("a.jsonl", b'{"path": "1.png", "label": ["cat"]}\n', "line 1: 'label' is a list, expected text or a number"),
        ("a.jsonl", b'{"path": "\\ud800.png", "label": "cat"}\n', "line 1: "),
        ("a.jsonl", b"[" * 100_000, "line 1: "),
        ("a.jsonl", b'{"path": ' + b"9" * 10_000 + b', "label": 1}\n', "line 1"),
    ],
)
def test_a_bad_list_is_refused_in_one_line(pets: Path, taskres: Taskres, name: str, content: bytes, said: str) -> None:
    (pets / name).write_bytes(content)
    line = one_line(taskres("extract", pets / name, "--backbone", "glyph-clip", "--pretrained", "bundled"))
    assert said in line
    assert name in line


def test_a_list_that_is_no_file_is_refused(pets: Path) -> None:
    with pytest.raises(DatasetError, match=r"b\.csv does not exist; check the path"):
        load_dataset(str(pets / "b.csv"))
    os.mkfifo(pets / "c.csv")
    with pytest.raises(DatasetError, match=r"c\.csv is not a file"):
        load_dataset(str(pets / "c.csv"))
    (pets / "images").rename(pets / "images.csv")
    with pytest.raises(DatasetError, match="only 0 classes"):  # a folder of images, whatever its name
        load_dataset(str(pets / "images.csv"))


def test_root_is_the_folder_of_the_images(pets: Path) -> None:
    elsewhere = pets / "lists" / "v1"
    elsewhere.mkdir(parents=True)
    plain = write(elsewhere, "plain.csv", "path,label", *labelled())
    upwards = write(elsewhere, "upwards.csv", "path,label", *(f"../../{row}" for row in labelled()))
    absolute = write(elsewhere, "absolute.csv", "path,label", *(f"{pets}/{row}" for row in labelled()))
    for typed in (plain, upwards, absolute):
        with pytest.raises(DatasetError, match="--root"):
            load_dataset(typed)
        assert pairs(load_dataset(typed, pets)) == EXPECTED
        assert load_dataset(typed, pets).source.location == pets
    with pytest.raises(DatasetError, match="is outside of"):
        load_dataset(upwards, pets / "lists")
    with pytest.raises(DatasetError, match="is not a folder"):
        load_dataset(plain, pets / "nowhere")


@pytest.mark.parametrize(
    ("files", "typed"),
    [
        (("train.csv", "val.csv", "test.csv"), "{train,val,test}.csv"),
        (("train.csv", "val.csv", "test.csv"), "*.csv"),
        (("pets_train2017.jsonl", "pets_dev2017.tsv", "pets_test2017.csv"), None),
        (("Train/list.csv", "valid/list.csv", "test/list.csv"), "*/list.csv"),
    ],
)
def test_several_lists_whose_names_say_the_parts(pets: Path, files: tuple[str, ...], typed: str | None) -> None:
    for place, name in enumerate(files):
        (pets / name).parent.mkdir(exist_ok=True)
        up = "../" if "/" in name else ""
        rows = [(f"{up}images/{number}.png", CLASSES[number % 2]) for number in range(place, 20, 3)]
        if name.endswith("jsonl"):
            write(pets, name, *(json.dumps({"file": path, "class": label}) for path, label in rows))
        else:
            write(pets, name, *(("\t" if name.endswith("tsv") else ",").join(row) for row in rows))
    typed = str(pets / typed) if typed else "::".join(str(pets / name) for name in files)
    dataset = load_dataset(typed)
    assert pairs(dataset) == EXPECTED
    assert (dataset.split, [len(items) for items in dataset.partitions.values()]) == ("given", [7, 7, 6])
    assert {item.path for item in dataset.test} == {f"images/{number}.png" for number in range(2, 20, 3)}
    assert load_dataset(typed, split_column="").split.startswith("60/20/20")


def test_a_row_must_not_contradict_one_of_another_list(pets: Path) -> None:
    write(pets, "train.csv", *labelled())
    with pytest.raises(DatasetError, match=r"test\.csv does not exist"):
        load_dataset(str(pets / "{train,test}.csv"))
    write(pets, "test.csv", "images/3.png,dog", "images/4.png,cat")
    with pytest.raises(DatasetError, match=r"'images/\d\.png' has split .*train\.csv, row .*expected one"):
        load_dataset(str(pets / "{train,test}.csv"))
    with pytest.raises(DatasetError, match="is an address"):
        load_dataset("https://example.org/list.csv")


def test_a_file_name_may_have_spaces_and_backslashes(pets: Path) -> None:
    (pets / "images" / "0.png").rename(pets / r"images\0.png")
    (pets / "images" / "1.png").rename(pets / " 1.png")
    rows = [r"images\0.png,cat", " 1.png,dog", *labelled()[2:]]
    paths = {path for path, _ in pairs(load_dataset(write(pets, "a.csv", "path,label", *rows)))}
    assert {r"images\0.png", " 1.png", "images/2.png"} <= paths


def test_every_fault_is_a_refusal(pets: Path) -> None:
    """A class in test without train images, one class, and a wrong part have a message that speaks of rows."""
    for rows, said in (
        (["images/0.png,cat,train", "images/1.png,dog,train", "images/2.png,cow,test"], "no train row of 'cow'"),
        (["images/0.png,cat,train", "images/2.png,cat,test"], "all rows have one class, 'cat'"),
        (["images/0.png,cat,train", "images/1.png,dog,tset"], "row 3: split 'tset', expected train, val or test"),
        (["images/0.png,cat,train", "images/1.png,dog,"], "row 3: no split"),
    ):
        with pytest.raises(TaskresError, match="rows? ") as raised:
            load_dataset(write(pets, "a.csv", "path,label,split", *rows))
        assert said in str(raised.value)
        assert "folders" not in str(raised.value)
