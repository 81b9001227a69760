"""Corrected labels: what a file may say, and what becomes of the lists of a data set."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.datasets.labels.changes import Change, Corrections
from taskres_cache.datasets.labels.corrections import corrected
from taskres_cache.errors import DatasetError, OptionError


def classes_of(dataset: Dataset, part: str) -> dict[str, str]:
    return {item.path: dataset.classnames[item.label] for item in dataset.partitions[part]}


def written(folder: Path, text: str, name: str = "fixes.csv") -> Path:
    file = folder / name
    file.write_bytes(text.encode())
    return file


def test_an_image_gets_another_label_and_keeps_its_place(dataset: Dataset, tmp_path: Path) -> None:
    train, val = dataset.train[3], dataset.val[0]
    assert dataset.classnames == ("black_cat", "dog", "été")
    rows = f"label,note,path\ndog,sure,{train.path}\nété,,{val.path}\nblack_cat,same,{dataset.train[0].path}\n"
    changed = corrected(dataset, [written(tmp_path, rows)])
    assert changed.classnames == dataset.classnames
    for part in ("train", "val", "test"):
        assert [item.path for item in changed.partitions[part]] == [item.path for item in dataset.partitions[part]]
    expected = {**classes_of(dataset, "train"), train.path: "dog"}
    assert classes_of(changed, "train") == expected
    assert classes_of(changed, "val") == {**classes_of(dataset, "val"), val.path: "été"}
    assert changed.test == dataset.test
    assert changed.corrections.changes == (
        Change(train.path, "black_cat", "dog", "train", "train"),
        Change(val.path, "black_cat", "été", "val", "val"),
    )
    digest = sha256(rows.encode()).hexdigest()
    assert changed.corrections.as_plain() == {
        "files": {"fixes.csv": digest},
        "relabelled": 2,
        "left_out": 0,
        "moved": 0,
    }
    assert changed.corrections.paths == {train.path, val.path, dataset.train[0].path}
    assert "corrected labels: 2 relabelled, 0 left out, 0 moved" in changed.notes


def test_images_are_left_out_or_moved(dataset: Dataset, tmp_path: Path) -> None:
    out, empty, moved = dataset.train[0], dataset.test[0], dataset.test[1]
    rows = f"path;label;split\n{out.path};-;\n{empty.path};;\n{moved.path};dog;validation\n"
    changed = corrected(dataset, [written(tmp_path, rows)])
    assert changed.train == dataset.train[1:]
    assert changed.test == dataset.test[2:]
    assert [item.path for item in changed.val] == [*(item.path for item in dataset.val), moved.path]
    assert changed.classnames[changed.val[-1].label] == "dog"
    assert changed.corrections.counts == {"relabelled": 1, "left_out": 2, "moved": 1}


def test_a_new_class_comes_last_and_a_class_without_images_is_dropped(dataset: Dataset, tmp_path: Path) -> None:
    cats = [item.path for items in dataset.partitions.values() for item in items if item.label == 0]
    wolf = next(item.path for item in dataset.train if item.label == 1)
    rows = "".join(f"{path},dog\n" for path in cats) + f"{wolf},wolf\n"
    changed = corrected(dataset, [written(tmp_path, rows)])
    assert changed.classnames == ("dog", "été", "wolf")
    assert [path for path, name in classes_of(changed, "train").items() if name == "wolf"] == [wolf]
    assert classes_of(changed, "test").keys() == classes_of(dataset, "test").keys()
    assert set(classes_of(changed, "test").values()) == {"dog", "été"}
    assert "new class 'wolf' (images: 1)" in changed.notes
    assert "no image is left of 'black_cat'; the class is dropped" in changed.notes


def test_identifiers_of_classes_follow_the_names(dataset: Dataset, tmp_path: Path) -> None:
    wolf = next(item.path for item in dataset.train if item.label == 1)
    file = written(tmp_path, f"{wolf},wolf\n")
    assert corrected(replace(dataset, class_ids=("n1", "n2", "n3")), [file]).class_ids == ("n1", "n2", "n3", "wolf")


@pytest.mark.parametrize("label", ["Dog", "DOG", " dog "])
def test_spellings_of_a_class_are_that_class(dataset: Dataset, tmp_path: Path, label: str) -> None:
    path = dataset.train[0].path
    changed = corrected(dataset, [written(tmp_path, f"{path},{label}\n")])
    assert classes_of(changed, "train")[path] == "dog"
    assert classes_of(corrected(dataset, [written(tmp_path, f"{path},Black Cat\n")]), "train")[path] == "black_cat"


def test_a_likely_typing_error_is_noted(dataset: Dataset, tmp_path: Path) -> None:
    file = written(tmp_path, f"{dataset.train[0].path},dogg\n")
    assert "new class 'dogg' (images: 1); if you meant 'dog', fix the label" in corrected(dataset, [file]).notes


def test_paths_may_lead_to_the_image_from_anywhere(
    dataset: Dataset, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (item.path for item in dataset.train[:3])
    monkeypatch.chdir(photos.parent)
    backslashes = second.replace("/", "\\")
    rows = f"path\tlabel\n{photos / first}\tdog\n./{backslashes}\tdog\n{photos.name}/{third}\tdog\n"
    changed = corrected(dataset, [written(tmp_path, "\ufeff" + rows)])
    assert [change.path for change in changed.corrections.changes] == [first, second, third]


def test_a_later_file_overrides_an_earlier_one_and_the_cache(dataset: Dataset, tmp_path: Path) -> None:
    first, second, third = (item.path for item in dataset.train[:3])
    one = written(tmp_path, f"{first},dog\n{second},dog\n", "one.csv")
    two = written(tmp_path, f"{second},été\n", "two.csv")
    earlier = Corrections(
        (
            Change(first, "black_cat", "été", "train", "train"),
            Change(third, "black_cat", "", "train", "train"),
            Change("gone.png", "dog", "", "train", "train"),
        ),
        (("zero.csv", "ab"),),
    )
    changed = corrected(dataset, [one, two], earlier)
    assert {change.path: change.label for change in changed.corrections.changes} == {
        first: "dog",
        second: "été",
        third: "",
    }
    assert [name for name, _ in changed.corrections.files] == ["zero.csv", "one.csv", "two.csv"]


def test_files_of_one_name_are_both_recorded(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    one = written(tmp_path, f"{dataset.train[0].path},dog\n")
    two = written(tmp_path / "more", f"{dataset.train[1].path},dog\n")
    assert [name for name, _ in corrected(dataset, [one, two]).corrections.files] == ["fixes.csv", str(two)]


def test_an_earlier_correction_moves_only_what_it_moved(dataset: Dataset) -> None:
    val, test = dataset.val[0].path, dataset.test[0].path
    earlier = Corrections(
        (
            Change(val, "black_cat", "dog", "train", "train"),  # the image was in train when it was corrected
            Change(test, "black_cat", "dog", "test", "train"),
        )
    )
    changed = corrected(dataset, [], earlier)
    assert classes_of(changed, "val")[val] == "dog"
    assert classes_of(changed, "train")[test] == "dog"


def test_rows_that_change_nothing_are_no_corrections(dataset: Dataset, tmp_path: Path) -> None:
    changed = corrected(dataset, [written(tmp_path, f"{dataset.train[0].path},black_cat\n")])
    assert changed.corrections.changes == ()
    assert changed.corrections.as_plain() == {}
    assert "the corrections change no label" in changed.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "fixes.csv has no row; expected the columns path and label"),
        ("a,b,c,d\n", "has the columns 'a', 'b', 'c', 'd'; expected path and label"),
        ("path,part\nx,test\n", "has the columns 'path', 'part'; expected path and label"),
        ("path,label\nonly\n", "fixes.csv, line 2 has 1 cells, expected a path and a label"),
        ("path,label\nx,a\x1bb\n", r"line 2: label 'a\\x1bb' has characters that cannot be printed"),
        ("path,label\n\n,dog\n", "fixes.csv, line 3 has 2 cells, expected a path and a label"),
        (
            "dog/image 9.png,dog\nx,dog\n",
            "line 1: .* no image 'dog/image 9.png'; did you mean .*path .1 more row",
        ),
        ("cat/image 2.png,dog\n", "no image 'cat/image 2.png'; did you mean 'black_cat/image 2.png'"),
        (
            "dog/image 2.png,dog\ndog/image 2.png,été\n",
            "line 2: .* has label 'été', but 'dog' in .*line 1",
        ),
        ("path,label,part\ndog/image 2.png,dog,holdout\n", "line 2: part 'holdout', expected train, val or test"),
    ],
)
def test_rows_that_cannot_be_used_are_named(dataset: Dataset, tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        corrected(dataset, [written(tmp_path, rows)])


def test_a_class_must_keep_a_train_image(dataset: Dataset, tmp_path: Path) -> None:
    test = written(tmp_path, f"{dataset.test[0].path},wolf\n")
    with pytest.raises(DatasetError, match="after the corrections, 'wolf' has no train image"):
        corrected(dataset, [test])


def test_files_that_are_no_tables_are_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"could not read .*nothing\.csv \(No such file"):
        corrected(dataset, [tmp_path / "nothing.csv"])
    (tmp_path / "latin.csv").write_bytes("path,label\nété,été\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin\.csv is not a CSV file in UTF-8"):
        corrected(dataset, [tmp_path / "latin.csv"])


def test_known_data_sets_keep_their_labels(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'digits' keeps its published labels"):
        corrected(load_dataset("digits"), [written(tmp_path, "a,b\n")])
