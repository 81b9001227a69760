"""Rows of image, class and part become a data set."""

import pytest

from taskres_cache.datasets.folder import read_folder
from taskres_cache.datasets.forms.rows import Row, dataset_of_rows
from taskres_cache.datasets.images import ImageFolder
from taskres_cache.errors import DatasetError


def folder_of(tmp_path, count=10, classes=("cat", "dog")):
    for classname in classes:
        (tmp_path / classname).mkdir()
        for number in range(count):
            (tmp_path / classname / f"{number}.png").write_bytes(b"")
    return ImageFolder(tmp_path)


def test_rows_without_parts_are_split_as_their_folder(tmp_path):
    source = folder_of(tmp_path)
    rows = [Row(f"{name}/{number}.png", name) for name in ("dog", "cat") for number in range(10)]
    listed, folder = dataset_of_rows(source, "pets", rows), read_folder(source, "pets")
    assert (listed.train, listed.val, listed.test) == (folder.train, folder.val, folder.test)
    assert (listed.classnames, listed.split) == (("cat", "dog"), folder.split)


def test_given_parts_and_list_order_are_kept(tmp_path):
    rows = [
        Row("b.png", "y", "Train"),
        Row("a.png", "x", "training"),
        Row("c.png", "x", "dev"),
        Row("d.png", "y", "TEST"),
    ]
    found = dataset_of_rows(ImageFolder(tmp_path), "own", rows)
    assert [(item.path, item.label) for item in found.train] == [("b.png", 1), ("a.png", 0)]
    assert ([item.path for item in found.val], [item.path for item in found.test]) == (["c.png"], ["d.png"])
    assert found.split == "given"


def test_numbers_are_sorted_by_value(tmp_path):
    rows = [Row(f"{name}-{number}.png", name) for name in ("10", "9", "2") for number in range(5)]
    assert dataset_of_rows(ImageFolder(tmp_path), "own", rows).classnames == ("2", "9", "10")


def test_two_forms_of_an_accent_are_one_class(tmp_path):
    rows = [Row(f"{number}.png", name) for number, name in enumerate(["caf\u00e9", "cafe\u0301", "tea"] * 5)]
    found = dataset_of_rows(ImageFolder(tmp_path), "own", rows)
    assert len(found.classnames) == 2
    assert any("one class" in note for note in found.notes)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "lists no image"),
        ([Row("a", "x", "train"), Row("b", "y", "", "list.csv, row 3")], "list.csv, row 3: no split"),
        ([Row("a", "x", "train"), Row("b", "y", "tst", "list.csv, row 3")], "split 'tst', expected train, val or test"),
        ([Row("a", "x", "train"), Row("b", "y", "train")], "no test row"),
        (
            [Row("a", "x", "", "row 1"), Row("a", "x", "", "row 2"), Row("b", "y")],
            "a is listed twice (row 1 and row 2)",
        ),
        ([Row("a", "x", "", "row 1"), Row("b", "x"), Row("a", "y", "", "row 2"), Row("c", "y")], "a is listed twice"),
    ],
)
def test_faults_name_row_and_remedy(tmp_path, rows, said):
    with pytest.raises(DatasetError) as raised:
        dataset_of_rows(ImageFolder(tmp_path), "own", rows)
    assert said in str(raised.value)
