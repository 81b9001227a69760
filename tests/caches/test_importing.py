"""Import of arrays: the cache that valid arrays give, and one clear error line for each mistake."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from taskres_cache.caches.contents import CacheContents
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.caches.importing import ImportOptions, contents_of_arrays, import_contents, read_arrays
from taskres_cache.errors import ArraysError, CacheMismatchError, OptionError
from taskres_cache.recipe import Recipe
from taskres_cache.runs.study import fit_each

Arrays = dict[str, np.ndarray]
OPTIONS = ImportOptions("birds", shots=(1, 2), seeds=(1, 2))


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "train_features": rng.normal(size=(12, 6)).astype(np.float32),
        "train_labels": np.tile([0, 1, 2], 4),
        "val_features": rng.normal(size=(6, 6)).astype(np.float32),
        "val_labels": np.tile([0, 1, 2], 2),
        "test_features": rng.normal(size=(9, 6)).astype(np.float32),
        "test_labels": np.tile([0, 1, 2], 3),
        "text_features": rng.normal(size=(3, 6)).astype(np.float32),
        "classnames": np.array(["jay", "owl", "tit"]),
    }


def test_arrays_become_a_cache_that_can_be_fitted(arrays: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "birds.npz", **arrays)
    path = import_contents(read_arrays(tmp_path / "birds.npz"), OPTIONS, tmp_path / "cache").path
    assert path == tmp_path / "cache" / "imported-arrays" / "birds.h5"
    cache = FeatureCache(path)
    split = cache.split(2, 1)
    assert np.array_equal(cache.image_features(cache.rows("test")), arrays["test_features"])
    assert set(cache.partitions[split.train]) == {0}
    assert set(cache.partitions[split.val]) == {1}
    assert cache.labels[split.val].tolist() == [0, 0, 1, 1, 2, 2]
    assert cache.provenance.logit_scale == 100.0
    assert cache.text_bases().embeddings.shape == (3, 1, 6)
    (run,) = fit_each(cache, [(2, 1)], [Recipe(epochs=3)], torch.device("cpu"), tmp_path / "runs")
    assert 0 <= run.metrics.test_accuracy <= 100


def test_optional_arrays(arrays: Arrays) -> None:
    text = np.stack([arrays["text_features"]] * 2, axis=1)
    no_val = {name: array for name, array in arrays.items() if not name.startswith("val")}
    contents = contents_of_arrays({**no_val, "text_features": text, "logit_scale": np.array(30.0)}, OPTIONS)
    assert contents.text.embeddings.shape == (3, 2, 6)
    assert contents.provenance.logit_scale == 30.0
    assert len(contents.splits[1, 1].val) == 0
    named = contents_of_arrays({**arrays, "templates": np.array(["a {}."])}, OPTIONS)
    assert named.text.templates == ("a {}.",)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Arrays], Arrays]:
    def apply(arrays: Arrays) -> Arrays:
        value = change(arrays[name].copy()) if name in arrays else change(np.array(0.0))
        return {key: array for key, array in {**arrays, name: value}.items() if array is not None}

    return apply


def put(row: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def apply(array: np.ndarray) -> np.ndarray:
        array[row] = value
        return array

    return apply


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (changed("train_features", lambda _: None), "missing arrays: train_features; expected"),
        (changed("classnames", lambda _: None), "missing arrays: classnames"),
        (changed("val_labels", lambda _: None), "val_features is given but val_labels is missing"),
        (changed("train_labels", put(3, 3)), "train_labels has labels from 0 to 3, expected 0 to 2"),
        (changed("test_labels", put(0, -1)), "test_labels has labels from -1 to 2"),
        (changed("train_labels", lambda array: array.astype(float)), "expected integers"),
        (changed("train_labels", lambda array: array[:-1]), r"train_features has shape \(12, 6\), expected \(11, 6\)"),
        (changed("train_labels", lambda array: np.where(array == 1, 0, array)), "class 'owl' has no training image"),
        (changed("test_features", lambda array: array[:, :5]), "test_features has 5 columns and text_features has 6"),
        (changed("text_features", lambda array: array[:, :4]), "train_features has 6 columns and text_features has 4"),
        (changed("text_features", lambda array: array[:2]), r"text_features has shape \(2, 6\), expected \(3, D\)"),
        (changed("text_features", put(1, np.nan)), "text_features: row 1 has NaN or infinite"),
        (changed("train_features", put(7, np.nan)), "train_features: row 7 has NaN or infinite"),
        (changed("test_features", put(2, np.inf)), "test_features: row 2 has NaN or infinite"),
        (
            changed("val_features", lambda array: array.astype(float) * 1e300),
            "val_features: row 0 has NaN or infinite",
        ),
        (changed("val_features", put(4, 0.0)), "val_features: row 4 has only zeros"),
        (changed("train_features", lambda array: (10 * array).astype(int)), "expected floating-point features"),
        (changed("classnames", lambda _: np.array(["jay", "owl", "jay"])), "class name 'jay' occurs twice"),
        (changed("logit_scale", lambda _: np.array(-1.0)), "expected one positive number"),
        (changed("logit_scale", lambda _: np.array([1.0, 2.0])), "expected one positive number"),
        (
            changed("templates", lambda _: np.array(["a", "b"])),
            "templates has length 2, but text_features has 1 per class",
        ),
        (changed("test_labels", lambda array: array[:0]), "test_labels is empty"),
    ],
)
def test_each_mistake_has_one_error_line(
    arrays: Arrays, harm: Callable[[Arrays], Arrays], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArraysError, match=message) as error:
        import_contents(harm(arrays), OPTIONS, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_a_single_class_is_rejected(arrays: Arrays) -> None:
    one = {name: np.zeros_like(array) if name.endswith("labels") else array for name, array in arrays.items()}
    one |= {"classnames": np.array(["jay"]), "text_features": arrays["text_features"][:1]}
    with pytest.raises(ArraysError, match="classnames has length 1, expected at least 2"):
        contents_of_arrays(one, OPTIONS)


def test_files_without_usable_arrays(tmp_path: Path, arrays: Arrays) -> None:
    with pytest.raises(ArraysError, match="does not exist"):
        read_arrays(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(ArraysError, match="not a usable .npz file"):
        read_arrays(tmp_path / "text.npz")
    np.savez(tmp_path / "cut.npz", **arrays)
    raw = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ArraysError, match="not a usable .npz file"):
        read_arrays(tmp_path / "cut.npz")
    np.save(tmp_path / "single.npy", arrays["train_features"])
    with pytest.raises(ArraysError, match="not a usable .npz file"):
        read_arrays(tmp_path / "single.npy")


def test_nothing_is_ever_unpickled(tmp_path: Path, arrays: Arrays) -> None:
    np.savez(tmp_path / "objects.npz", **{**arrays, "classnames": np.array(["jay", "owl", "tit"], dtype=object)})
    with pytest.raises(ArraysError, match="save strings as a string array"):
        read_arrays(tmp_path / "objects.npz")


def test_an_import_replaces_an_import_but_no_extracted_features(
    arrays: Arrays, contents: CacheContents, tmp_path: Path
) -> None:
    path = import_contents(arrays, OPTIONS, tmp_path).path
    import_contents({**arrays, "logit_scale": np.array(50.0)}, OPTIONS, tmp_path)
    assert FeatureCache(path).provenance.logit_scale == 50.0
    write_cache(path, contents)
    before = path.read_bytes()
    with pytest.raises(CacheMismatchError, match="weights_sha256.*choose another --name"):
        import_contents(arrays, OPTIONS, tmp_path)
    assert path.read_bytes() == before


def test_fewer_images_than_shots_give_a_note(arrays: Arrays, tmp_path: Path) -> None:
    done = import_contents(arrays, ImportOptions("birds", shots=(1, 16), seeds=(1,)), tmp_path)
    assert done.notes[0] == "class 'jay' has 4 train images, fewer than 16 shots; all are used"
    assert len(FeatureCache(done.path).split(16, 1).train) == 12


@pytest.mark.parametrize("option", ["name", "backbone", "pretrained"])
@pytest.mark.parametrize("value", ["../x", "/abs", "..", " ", "a\0b", "a\nb", "x" * 256])
def test_names_that_lead_out_of_the_folder_are_refused(option: str, value: str) -> None:
    with pytest.raises(OptionError, match=f"{option} .*; expected a plain name") as error:
        ImportOptions(**{"name": "birds", option: value})
    assert "\n" not in str(error.value)
