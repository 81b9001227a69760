"""Import of labels that are names, of one set of images, and of images without test."""

from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.foreign.importing import ImportOptions, contents_of_arrays, import_contents, partitions_of
from taskres_cache.datasets.splitting import split_class
from taskres_cache.errors import ArraysError

Arrays = dict[str, np.ndarray]
OPTIONS = ImportOptions("birds", shots=(1,), seeds=(1,))
NAMES = np.array(["tit", "jay", "owl"])


def one_set(count: int = 60, named: bool = True, seed: int = 0) -> Arrays:
    labels = np.arange(count) % 3
    features = np.random.default_rng(seed).normal(size=(200, 6)).astype(np.float32)[:count]
    return {"features": features, "labels": NAMES[labels] if named else labels}


def test_names_are_sorted_unless_classnames_orders_them() -> None:
    found = contents_of_arrays(one_set(), OPTIONS)
    assert found.classnames == ("jay", "owl", "tit")
    ordered = contents_of_arrays({**one_set(), "classnames": NAMES}, OPTIONS)
    assert ordered.classnames == ("tit", "jay", "owl")
    for contents in (found, ordered):
        rows = [int(path.split("/")[1]) for path in contents.paths]
        assert [contents.classnames[label] for label in contents.labels] == [str(NAMES[row % 3]) for row in rows]
        assert np.array_equal(contents.image_features, one_set()["features"][rows])
    assert contents_of_arrays(one_set(named=False), OPTIONS).classnames == ("0", "1", "2")


def test_test_and_val_are_drawn_per_class_and_stay_when_rows_are_appended() -> None:
    few, more = (contents_of_arrays(one_set(count), OPTIONS) for count in (60, 90))
    assert few.provenance.split == "60/20/20 of each class by row, seed 0"
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (few.labels, few.partitions), 1)
    assert counts.tolist() == [[12, 4, 4]] * 3
    place = dict(zip(more.paths, more.partitions.tolist(), strict=True))
    assert all(place[path] == part for path, part in zip(few.paths, few.partitions.tolist(), strict=True))
    split = split_class([f"class/{rank}" for rank in range(20)], "jay", 0)
    expected = sorted(f"row/{3 * int(path.split('/')[1]) + 1}" for path in split.test)
    of_jay = [
        path
        for path, part, label in zip(few.paths, few.partitions, few.labels, strict=True)
        if part == 2 and label == 0
    ]
    assert sorted(of_jay) == expected
    other = contents_of_arrays(one_set(), ImportOptions("birds", shots=(1,), seeds=(1,), split_seed=1))
    assert other.paths != few.paths


def test_the_draw_goes_by_paths_if_they_are_given() -> None:
    paths = np.array([f"img_{row}.jpg" for row in range(60)])
    given = {**one_set(), "paths": paths}
    contents = contents_of_arrays(given, OPTIONS)
    assert contents.provenance.split == "60/20/20 of each class by file name, seed 0"
    back = np.random.default_rng(1).permutation(60)
    shuffled = contents_of_arrays({name: array[back] for name, array in given.items()}, OPTIONS)
    assert dict(zip(contents.paths, contents.partitions, strict=True)) == dict(
        zip(shuffled.paths, shuffled.partitions, strict=True)
    )
    assert sorted(contents.paths) == sorted(paths.tolist())


def test_train_without_test_is_divided_and_val_is_kept() -> None:
    whole = one_set()
    train = {"train_features": whole["features"], "train_labels": whole["labels"], "train_views": np.ones((60, 2, 6))}
    train["train_views"] = np.random.default_rng(2).normal(size=(60, 2, 6))
    parts = partitions_of(train)
    assert {name: len(parts.arrays[f"{name}_labels"]) for name in ("train", "val", "test")} == {
        "train": 36, "val": 12, "test": 12,
    }  # fmt: skip
    rows = [int(path.split("/")[1]) for path in parts.arrays["train_paths"]]
    assert np.array_equal(parts.arrays["train_views"], train["train_views"][rows])
    assert parts.notes == (
        "there are no test images: 20 % of each class are test and 20 % val, drawn by row with seed 0",
    )
    val = {"val_features": whole["features"][:9] + 1, "val_labels": whole["labels"][:9]}
    kept = partitions_of({**train, **val})
    assert {name: len(kept.arrays[f"{name}_labels"]) for name in ("train", "val", "test")} == {
        "train": 48, "val": 9, "test": 12,
    }  # fmt: skip
    assert kept.split == "80/0/20 of each class by row, seed 0"


def test_a_split_per_row_is_used() -> None:
    split = np.array(["Train", "dev", "test"])[np.repeat([0, 1, 2], 20)]
    contents = contents_of_arrays({**one_set(), "split": split}, OPTIONS)
    assert contents.partitions.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert contents.provenance.split == "given"
    assert contents.paths == tuple(f"row/{row}" for row in range(60))


def test_an_import_of_names_can_be_fitted_and_repeated(tmp_path: Path) -> None:
    done = import_contents(one_set(), OPTIONS, tmp_path)
    assert any("there are no test images" in note for note in done.notes)
    again = import_contents(one_set(), OPTIONS, tmp_path)
    assert not any("is replaced" in note for note in again.notes)
    assert len(FeatureCache(done.path).rows("test")) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([*["jay", "owl"] * 29, "jay", None], object)}, "labels: row 59 has no label; fix"),
        ({"labels": np.array([*["jay", "owl"] * 29, "jay", 3], object)}, "labels: row 59 is 3, expected text"),
        ({"classnames": np.array(["tit", "jay", "owls"])}, "row 2 has 'owl', not one of classnames; did you mean"),
        ({"labels": np.arange(60) % 3 * 2}, "no image has label 1, but labels go up to 4; number the classes without"),
        ({"labels": np.arange(60) % 3 - 1}, "labels has label -1, expected 0 or more"),
        ({"labels": np.arange(60) % 3 / 2}, "labels has shape .* and type float64, expected integers or names"),
        ({"labels": NAMES[np.arange(59) % 3]}, r"features has shape \(60, 6\), expected 59 rows"),
        ({"split": np.array(["train"] * 59 + ["held out"])}, "row 59 has 'held out', expected train, val or test"),
        ({"split": np.array(["train", "test"])}, "split has length 2 and labels 60"),
        ({"split": np.array(["test"] * 60)}, "split names test rows but no train row"),
        ({"paths": np.array(["a"] * 60)}, "paths has a path twice within a class"),
        ({"paths": np.array(["a"] * 3)}, "labels has length 60 and paths 3"),
        ({"train_features": np.ones((3, 6))}, "features and train_features are both given"),
        ({"labels": None}, "features is given but labels is missing"),
        ({"text_features": np.eye(3, 6)}, "missing arrays: classnames; text_features needs the name"),
        ({"features": np.ones(())}, r"features has shape \(\), expected 60 rows"),
        ({"templates": np.array(["a {}"])}, "templates is given but text_features is missing"),
        ({"test_labels": np.arange(3)}, "test_labels has numbers and labels has names"),
    ],
)  # fmt: skip
def test_each_mistake_has_one_error_line(change: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    arrays = {name: array for name, array in {**one_set(), **change}.items() if array is not None}
    import_contents(one_set(), OPTIONS, tmp_path)
    (before,) = tmp_path.rglob("*.h5")
    content = before.read_bytes()
    with pytest.raises(ArraysError, match=message) as error:
        import_contents(arrays, OPTIONS, tmp_path)
    assert "\n" not in str(error.value)
    assert before.read_bytes() == content
