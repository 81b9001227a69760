"""A data set of rows in Python: data frames, tuples, mappings; paths, PIL images and arrays."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData

from taskres_cache import FeatureCache, dataset_of, extract, fit, load_dataset
from taskres_cache.datasets import Dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import DatasetError, OptionError
from taskres_cache.extraction.copies import without_copies
from taskres_cache.extraction.extract import ExtractOptions


def pictures(count: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (12, 10, 3), dtype=np.uint8) for _ in range(count)]


def kind(number: int) -> str:
    return ("cat", "dog")[number % 2]


def places(dataset: Dataset) -> dict[str, str]:
    return {item.path: part for part, items in dataset.partitions.items() for item in items}


def test_pil_images_and_arrays_are_one_data_set() -> None:
    arrays = dataset_of([(pixels, kind(number)) for number, pixels in enumerate(pictures())], "pets")
    images = dataset_of(((Image.fromarray(p), kind(n)) for n, p in enumerate(pictures())), "pets")
    frame = {"picture": pictures(), "species": [kind(number) for number in range(20)]}
    by_column, by_row = (
        dataset_of(frame, "pets"),
        dataset_of([{"img": p, "y": kind(n)} for n, p in enumerate(pictures())], "pets"),
    )
    assert places(arrays) == places(images) == places(by_column) == places(by_row)
    assert (arrays.name, arrays.classnames, len(places(arrays))) == ("pets", ("cat", "dog"), 20)
    item = arrays.train[0]
    assert any(np.array_equal(np.asarray(arrays.source.read(item.path)), pixels) for pixels in pictures())
    assert arrays.source.stamp(item.path) == images.source.stamp(item.path)


def test_images_keep_their_place_when_others_come() -> None:
    rows = [(pixels, kind(number)) for number, pixels in enumerate(pictures(100))]
    before, after = places(dataset_of(rows[:90], "pets")), places(dataset_of(rows[::-1], "pets"))
    assert before.items() <= after.items()


def test_a_copy_is_left_out_of_train() -> None:
    rows = [(pixels, kind(number)) for number, pixels in enumerate(pictures())]
    whole = dataset_of([*rows, *rows], "pets")
    assert len(places(whole)) == 40
    kept, notes = without_copies(whole)
    stamps = {part: {kept.source.stamp(item.path) for item in items} for part, items in kept.partitions.items()}
    assert not stamps["train"] & stamps["test"]
    assert any("have the same bytes" in note or "left out, as copies" in note for note in notes)


def test_the_source_can_be_sent_to_another_process() -> None:
    source = dataset_of([(Image.fromarray(p), kind(n)) for n, p in enumerate(pictures())], "pets").source
    sent = pickle.loads(pickle.dumps(source))
    path = next(iter(sent.images))
    assert np.array_equal(np.asarray(sent.read(path)), np.asarray(source.read(path)))


def test_labels_may_be_positions(tmp_path: Path) -> None:
    rows = [(pixels, np.int64(number % 2)) for number, pixels in enumerate(pictures())]
    named = dataset_of(rows, "pets", classnames=["dog", "cat"])
    assert named.classnames == ("cat", "dog")
    assert sum(item.label for items in named.partitions.values() for item in items) == 10
    assert dataset_of(rows, "pets").classnames == ("0", "1")
    with pytest.raises(DatasetError, match="list, row 3: label '2', expected 0 to 1"):
        dataset_of([*rows[:3], (rows[3][0], 2)], "pets", classnames=["dog", "cat"])


def test_a_data_set_of_torchvision() -> None:
    images = FakeData(size=40, image_size=(3, 8, 8), num_classes=2)  # pairs of PIL image and int or tensor
    assert dataset_of(images, "fake").classnames == ("0", "1")
    assert dataset_of(images, "fake", classnames=("cat", "dog")).classnames == ("cat", "dog")


def test_paths_are_below_root(photos: Path) -> None:
    files = sorted(photos.rglob("*.*g"))
    rows = [(file, file.parent.name) for file in files]
    columns = {"class": [name for _, name in rows], "file": [str(file) for file in files]}
    folder = load_dataset(str(photos))
    for made in (
        dataset_of(rows, "photos", root=photos),
        dataset_of([(str(file.relative_to(photos)), name) for file, name in rows], "photos", root=photos),
        dataset_of(columns, "photos", root=photos),
    ):
        assert (places(made), made.split, made.source) == (places(folder), folder.split, folder.source)
    with pytest.raises(DatasetError, match="is outside of"):
        dataset_of(rows, "photos", root=photos / "dog")
    parts = [(*row, ("train", "val", "test")[number % 3]) for number, row in enumerate(rows)]
    assert [len(items) for items in dataset_of(parts, "photos", root=photos).partitions.values()] == [10, 10, 10]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame(photos: Path, library: str) -> None:
    frames = pytest.importorskip(library)
    files = sorted(photos.rglob("*.*g"))
    columns = {"label": [file.parent.name for file in files], "path": [str(file) for file in files]}
    made = dataset_of(frames.DataFrame(columns), "photos", root=photos)
    assert places(made) == places(load_dataset(str(photos)))
    columns["label"][4] = None
    with pytest.raises(DatasetError, match="data frame, row 4: no class"):
        dataset_of(frames.DataFrame(columns), "photos", root=photos)
    numbers = frames.DataFrame({**columns, "label": [number % 2 for number in range(len(files))]})
    assert dataset_of(numbers, "photos", root=photos).classnames == ("0", "1")


PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "list: no image, found no row; expected a path, a PIL image or an array"),
        ([(torch.zeros(3, 8, 8), 0)], "list: no image, found Tensor, int; expected a path, a PIL image or an array"),
        (["a.png"], "row 0: str, expected a tuple"),
        ([("a.png", "cat"), 7], "row 1: int, expected a tuple"),
        ([("a.png", "cat"), ("b.png",)], "row 1: 1 values, expected 2"),
        ([{"path": "a.png", "label": "cat"}, 7], "row 1: int, expected a mapping"),
        ([(PIXELS, "cat"), ("a.png", "dog")], "row 1: str, but the first image is in memory"),
        ([("a.png", "dog"), (PIXELS, "cat")], "row 1: ndarray, but the first image is a path"),
        ([(PIXELS, "cat"), (None, "dog")], "row 1: NoneType, expected a path, a PIL image or an array"),
        ([(PIXELS, "cat"), (PIXELS.astype(float), "dog")], "row 1: could not read the image .* type float64"),
        ([(PIXELS, "cat"), (np.zeros((3, 8, 8), np.uint8), "dog")], r"row 1: could not read .* shape \(3, 8, 8\)"),
        ([(PIXELS, "cat"), (np.zeros((0, 8), np.uint8), "dog")], r"row 1: could not read .* shape \(0, 8\)"),
        ([(PIXELS, "cat"), (PIXELS, None)], "row 1: no class"),
        ([(PIXELS, "cat"), (PIXELS, "cat")], "all rows have one class, 'cat'"),
        ([("a.png", "cat"), ("b.png", "dog")], "none of the 2 images of list is below"),
        ([("a.png", "cat"), ("../b.png", "dog")], "row 1: '../b.png' is outside of"),
    ],
)
def test_a_bad_row_is_refused_with_its_number(rows: list, said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=said):
        dataset_of(rows, "pets", root=tmp_path)


def test_a_name_must_be_usable() -> None:
    with pytest.raises(OptionError, match="is not usable as a name"):
        dataset_of([(PIXELS, "cat")], "//")
    rows = [(pixels, kind(number)) for number, pixels in enumerate(pictures())]
    assert dataset_of(rows, "digits").name == "digits-folder"  # the features of another data set are not replaced


@pytest.mark.parametrize("make", [Image.fromarray, np.asarray])
def test_extract_and_fit(make: Callable[[np.ndarray], object], glyph_clip: Backbone, tmp_path: Path) -> None:
    """Images in memory give the features of the same images in files."""
    folder, part = tmp_path / "pets", ("train", "test")
    for number, pixels in enumerate(pictures()):
        file = folder / part[number // 2 % 2] / kind(number) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    options = ExtractOptions((5,), (1,), workers=2)
    rows = [(make(pixels), kind(number), part[number // 2 % 2]) for number, pixels in enumerate(pictures())]
    done = extract(dataset_of(rows, "pets"), glyph_clip, options, tmp_path / "memory.h5")
    assert extract(dataset_of(rows, "pets"), glyph_clip, options, tmp_path / "memory.h5").encoded == 0
    extract(load_dataset(str(folder)), glyph_clip, options, tmp_path / "files.h5")
    made, expected = (FeatureCache(tmp_path / name).contents() for name in ("memory.h5", "files.h5"))
    nearest = np.abs(made.image_features[:, None] - expected.image_features).max(axis=2).argmin(axis=1)  # (N,)
    assert np.allclose(made.image_features, expected.image_features[nearest], atol=1e-5)
    assert sorted(nearest) == list(range(20))
    assert np.array_equal(made.labels, expected.labels[nearest])
    assert len(fit(done.path, splits=[(5, 1)], out=tmp_path / "runs")) == 1
