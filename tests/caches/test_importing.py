"""Import of arrays: the cache that valid arrays give, and one clear error line for each mistake."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taskres_cache.caches.contents import CacheContents
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.foreign.importing import ImportOptions, contents_of_arrays, import_contents
from taskres_cache.caches.foreign.npz import read_arrays
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.datasets import ALL_SHOTS
from taskres_cache.errors import ArraysError, CacheMismatchError, OptionError
from taskres_cache.recipe import Recipe
from taskres_cache.runs.fitting.study import fit_each
from tests.conftest import Taskres, one_line

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
        (
            changed("valid_features", lambda _: np.zeros(3)),
            "unknown array 'valid_features'; did you mean 'val_features'",
        ),
        (changed("arr_0", lambda _: np.zeros(3)), "unknown array 'arr_0'; .*rename or remove it"),
        (changed("val_features", lambda _: None), "val_labels is given but val_features is missing; add it"),
        (changed("class_ids", lambda _: np.array(["a", "b"])), "class_ids has length 2 and classnames 3"),
        (changed("class_ids", lambda _: np.array(["a", "b", "a"])), "'a' occurs twice in class_ids"),
        (changed("classnames", lambda _: np.arange(3)), "classnames has shape .* expected text of one axis"),
        (changed("classnames", lambda _: np.array([b"\xff", b"b", b"c"])), "classnames has bytes that are not UTF-8"),
        (changed("classnames", lambda _: np.array(["a", " ", "c"])), "classnames: entry 1 is empty"),
        (changed("logit_scale", lambda _: np.array("100")), "logit_scale is an array of .* expected one positive"),
        (changed("logit_scale", lambda _: np.float32(4.6052)), "nearly certainly the logarithm of 100; .*np.exp"),
        (changed("logit_scale", lambda _: np.array(2.6593)), "nearly certainly the logarithm of 14.29"),
        (changed("train_features", lambda array: array * 0 + array[0]), "train_features: all 12 rows are equal"),
        (changed("text_features", lambda array: array * 0 + array[0]), "text_features are equal for all 3 classes"),
        (changed("text_features", lambda array: array.astype(complex)), "text_features has type complex128"),
        (changed("test_features", lambda array: array * 1e30), "test_features: row 0 has values up to"),
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
    with pytest.raises(ArraysError, match="is a single array .*, not an .npz file; put all arrays into one file"):
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


def test_most_test_images_must_not_be_training_images(arrays: Arrays, tmp_path: Path) -> None:
    arrays["test_features"][:4] = arrays["train_features"][:4]
    assert "4 rows of test_features are also in train_features" in import_contents(arrays, OPTIONS, tmp_path).notes
    arrays["test_features"][:5] = arrays["train_features"][:5]
    with pytest.raises(ArraysError, match="5 of 9 rows of test_features are also in train_features"):
        import_contents(arrays, OPTIONS, tmp_path)


def test_names_in_bytes_are_text_and_identifiers_let_names_repeat(arrays: Arrays, tmp_path: Path) -> None:
    named = {**arrays, "classnames": np.array([b"crane", "été".encode(), b"crane"])}
    named["class_ids"] = np.array([b"n1", b"n2", b"n3"])
    np.savez(tmp_path / "birds.npz", **named)
    cache = FeatureCache(import_contents(read_arrays(tmp_path / "birds.npz"), OPTIONS, tmp_path).path)
    assert (cache.classnames, cache.class_ids) == (("crane", "été", "crane"), ("n1", "n2", "n3"))


def test_another_import_adds_its_splits(arrays: Arrays, tmp_path: Path) -> None:
    first = FeatureCache(import_contents(arrays, OPTIONS, tmp_path).path)
    done = import_contents(arrays, ImportOptions("birds", shots=(16,), seeds=(4,)), tmp_path)
    second = FeatureCache(done.path)
    assert set(second.splits) == {*first.splits, (16, 4)}
    assert all(np.array_equal(second.splits[name].train, split.train) for name, split in first.splits.items())
    assert not any("replaced" in note for note in done.notes)
    other = {**arrays, "train_features": arrays["train_features"] + 1}
    assert any(
        "had other images or features and is replaced" in note
        for note in import_contents(other, OPTIONS, tmp_path).notes
    )


def test_all_labels_of_an_import_are_used(arrays: Arrays, here: Path, taskres: Taskres) -> None:
    np.savez("birds.npz", **arrays)
    assert taskres("import", "birds.npz", "--name", "birds").status == 0
    cache = FeatureCache("cache/imported-arrays/birds.h5")
    assert (cache.provenance.defaults, cache.provenance.val_per_class) == ("own", "all")
    assert (len(cache.split(ALL_SHOTS, 1).train), len(cache.split(ALL_SHOTS, 1).val)) == (12, 6)
    fewer = taskres("import", "birds.npz", "--name", "birds", "--shots", "4", "--val", "1")
    assert "validation images per class: 1, before: all; all splits of the cache are drawn again" in fewer.err
    again = FeatureCache(cache.path)
    assert again.splits.keys() == cache.splits.keys()
    assert {len(split.val) for split in again.splits.values()} == {3}
    kept = taskres("import", "birds.npz", "--name", "birds")
    assert "before" not in kept.err
    assert FeatureCache(cache.path).provenance.val_per_class == "1"


def test_an_import_ends_with_what_shows_most_mistakes(arrays: Arrays, here: Path, taskres: Taskres) -> None:
    arrays["test_features"] = 3 * arrays["text_features"][arrays["test_labels"]] + np.float32(0.01)
    arrays["test_labels"] = np.where(np.arange(9) == 0, 1, arrays["test_labels"])
    np.savez(here / "birds.npz", **arrays)
    printed = taskres("import", "birds.npz", "--name", "birds").err
    norms = [np.linalg.norm(arrays[name], axis=1).mean() for name in ("text_features", "test_features")]
    assert (
        f"zero-shot accuracy 88.89 % on 9 test images; mean length of text features {norms[0]:.4g}, of image features "
        f"{norms[1]:.4g}"
    ) in printed


def test_a_file_of_another_format_is_named(arrays: Arrays, here: Path, taskres: Taskres) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind in "if"}
    torch.save(tensors, here / "file.pt")
    torch.save(tensors, here / "old.pt", _use_new_zipfile_serialization=False)
    save_file({name: value.contiguous() for name, value in tensors.items()}, here / "tensors.dat")
    write_text = (here / "list.csv").write_text
    write_text("a,b\n1,2\n")
    for name, message in (
        ("file.pt", "is a PyTorch file, not an .npz file; load it with torch.load"),
        ("old.pt", "is a PyTorch file"),
        ("tensors.dat", "is a safetensors file, not an .npz file; give it the suffix .safetensors"),
        ("list.csv", "is not a usable .npz file"),
        (".", "is a folder"),
    ):
        assert message in one_line(taskres("import", name, "--name", "birds"))


def test_a_large_member_that_is_not_needed_is_never_read(arrays: Arrays, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "large.npz", **arrays, notes=np.zeros(1 << 26, np.uint8))
    with pytest.raises(ArraysError, match="unknown array 'notes'"):
        read_arrays(tmp_path / "large.npz")
    np.savez_compressed(tmp_path / "large.npz", **{**arrays, "templates": np.zeros(1 << 26, np.uint8)})
    with pytest.raises(ArraysError, match="declares .* bytes but has"):
        read_arrays(tmp_path / "large.npz")


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_refused_in_one_line(arrays: Arrays, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    (np.savez if seed % 2 else np.savez_compressed)(tmp_path / "birds.npz", **arrays)
    content = bytearray((tmp_path / "birds.npz").read_bytes())
    for _ in range(draw.choice([1, 1, 30])):
        content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    (tmp_path / "birds.npz").write_bytes(content)
    try:
        import_contents(read_arrays(tmp_path / "birds.npz"), OPTIONS, tmp_path)
    except ArraysError as error:
        assert "\n" not in str(error)


def test_a_damaged_list_of_arrays_drops_none(arrays: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "birds.npz", **arrays, logit_scale=np.array(50.0))
    content = (tmp_path / "birds.npz").read_bytes()
    for place in range(content.index(b"PK\x01\x02"), len(content)):
        (tmp_path / "flipped.npz").write_bytes(content[:place] + bytes([content[place] ^ 0x80]) + content[place + 1 :])
        try:
            read = read_arrays(tmp_path / "flipped.npz")
        except ArraysError:
            continue
        assert {*read} == {*arrays, "logit_scale"}, place
