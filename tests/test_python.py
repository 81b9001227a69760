"""Use from Python: arrays of a cache and their memory, the time of imports, and the example."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import taskres_cache
from taskres_cache import FeatureCache
from taskres_cache.caches.class_halves import CacheHalf
from taskres_cache.caches.contents import CacheContents, Split, TextBases
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import OptionError
from tests.conftest import Taskres

MEBIBYTE = 1 << 20
EXAMPLE = Path(__file__).parents[1] / "examples" / "own_method.py"
PeakOf = Callable[[Callable[[], object]], float]


def test_splits_of_a_cache_are_arrays(cache_file: Path, contents: CacheContents) -> None:
    cache = FeatureCache(str(cache_file))
    train, val = contents.splits[1, 1].train, contents.splits[1, 1].val
    parts = {"train": (cache.train(1, 1), train), "val": (cache.val(1, 1), val), "test": (cache.test(), range(15, 24))}
    for name, ((image_features, labels), rows) in parts.items():
        assert image_features.dtype == np.float32, name
        assert labels.dtype == np.int64, name
        assert np.array_equal(image_features, contents.image_features[list(rows)]), name
        assert np.array_equal(labels, contents.labels[list(rows)]), name


def test_text_features_are_the_mean_of_un_normalised_embeddings(cache_file: Path, contents: CacheContents) -> None:
    by_hand = (contents.text.embeddings[:, 0] + contents.text.embeddings[:, 1]) / 2
    assert np.allclose(FeatureCache(cache_file).text_features, by_hand, rtol=0, atol=1e-6)
    assert FeatureCache(cache_file).text_features.dtype == np.float32


def test_half_of_a_cache_has_only_its_classes(cache_file: Path, contents: CacheContents) -> None:
    names = ("a", "b", "c", "d")
    text = TextBases(contents.text.templates, np.repeat(contents.text.embeddings, 2, 0)[:4])
    labels = np.arange(24, dtype=np.int32) % 4
    write_cache(cache_file, replace(contents, classnames=names, text=text, labels=labels))
    new = CacheHalf(str(cache_file), "new")
    for (image_features, half_labels), rows in (
        (new.train(4, 1), [2, 3, 6, 7, 10, 11]),
        (new.val(4, 1), [14]),
        (new.test(), [15, 18, 19, 22, 23]),
    ):
        assert np.array_equal(image_features, contents.image_features[rows])
        assert half_labels.tolist() == [row % 4 - 2 for row in rows]
    assert np.array_equal(new.text_features, text.embeddings[2:].mean(axis=1))


def test_partitions_without_images_are_empty_and_missing_splits_raise(
    cache_file: Path, contents: CacheContents
) -> None:
    splits = {(1, 1): Split(np.array([5, 0, 7]), np.zeros(0, np.int64))}
    write_cache(cache_file, replace(contents, splits=splits))
    image_features, labels = FeatureCache(cache_file).val(1, 1)
    assert (image_features.shape, labels.shape) == ((0, 8), (0,))
    with pytest.raises(OptionError, match=r"has no split with 16 shots and seed 1 \(available: shots 1 with seeds 1\)"):
        FeatureCache(cache_file).train(16, 1)


def test_both_arrays_are_converted_with_into(cache_file: Path) -> None:
    converted: list[np.ndarray] = []

    def into(array: np.ndarray) -> torch.Tensor:
        converted.append(array)
        return torch.from_numpy(array)

    cache = FeatureCache(cache_file)
    for tensors in (cache.train(4, 1, into=into), cache.val(4, 1, into=into), cache.test(into=into)):
        assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.int64]
        assert [np.shares_memory(tensor.numpy(), converted.pop(0)) for tensor in tensors] == [True, True]
    assert converted == []


@pytest.fixture
def peak_of() -> Iterator[PeakOf]:
    """A function that returns the peak memory of an action in mebibytes."""

    def measure(action: Callable[[], object]) -> float:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = action()
        peak = tracemalloc.get_traced_memory()[1]
        del result
        return (peak - before) / MEBIBYTE

    tracemalloc.start()
    yield measure
    tracemalloc.stop()


def large(contents: CacheContents, dtype: type) -> CacheContents:
    """Return contents with 4096 train rows, which take 32 MiB in float32."""
    rng, images, dim = np.random.default_rng(0), 5000, 2048
    return replace(
        contents,
        paths=tuple(map(str, range(images))),
        stamps=("1",) * images,
        labels=np.arange(images, dtype=np.int32) % 3,
        partitions=np.repeat([0, 2], [4500, 500]).astype(np.uint8),
        image_features=rng.random((images, dim), np.float32).astype(dtype),
        text=TextBases(("{}",), np.ones((3, 1, dim), np.float32)),
        splits={(16, 1): Split(rng.permutation(4500)[:4096], np.zeros(0, np.int64))},
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_reading_a_split_takes_its_size_and_a_chunk(
    tmp_path: Path, contents: CacheContents, peak_of: PeakOf, dtype: type
) -> None:
    write_cache(tmp_path / "large.h5", large(contents, dtype))
    cache = FeatureCache(tmp_path / "large.h5")
    size = 4096 * 2048 * 4 / MEBIBYTE
    assert size == 32
    for into in (np.asarray, torch.from_numpy):
        peak = peak_of(lambda into=into: cache.train(16, 1, into=into))
        assert size <= peak < size + 5, f"a peak of {peak:.1f} MiB for {size:.0f} MiB of features"


def test_a_file_without_chunks_is_read_in_slices(tmp_path: Path, contents: CacheContents, peak_of: PeakOf) -> None:
    written = large(contents, np.float32)
    write_cache(tmp_path / "large.h5", written)
    with h5py.File(tmp_path / "large.h5", "r+") as file:
        del file["features/center"]
        file["features/center"] = written.image_features[:]
    cache = FeatureCache(tmp_path / "large.h5")
    assert peak_of(cache.test) < 500 * 2048 * 4 / MEBIBYTE + 5
    assert np.array_equal(cache.test()[0], written.image_features[4500:])


def run_python(program: str) -> str:
    """Return what a program prints in a new process."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "act",
    [
        "import taskres_cache; assert 'FeatureCache' in dir(taskres_cache); taskres_cache.__version__",
        "sys.argv = ['taskres', '--help']\nfrom taskres_cache.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
    ids=["import", "help"],
)
def test_import_and_help_load_no_large_library(act: str) -> None:
    large = "{'torch', 'h5py', 'sklearn', 'numpy', 'open_clip', 'PIL'}"
    assert run_python(f"import sys\n{act}\nprint('loaded', sorted({large} & set(sys.modules)))").endswith("loaded []\n")


def test_a_name_loads_only_what_it_needs() -> None:
    program = "import sys\nfrom taskres_cache import FeatureCache\n"
    assert run_python(program + "print(sorted({'h5py', 'torch', 'sklearn'} & set(sys.modules)))") == "['h5py']\n"


def test_an_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="module 'taskres_cache' has no attribute 'FeatureStore'"):
        taskres_cache.FeatureStore  # noqa: B018


def test_the_example_enters_fit_and_report(here: Path, taskres: Taskres) -> None:
    splits = ("--shots", "1,4", "--seeds", "1,2")
    assert taskres("extract", "digits", *splits, "--device", "cpu").status == 0
    methods = ("--method", f"taskres,{EXAMPLE}:BLEND")
    runs = json.loads(taskres("fit", "digits", *splits, *methods, "--device", "cpu", "--json").out)["runs"]
    own = [run for run in runs if run.get("record", {}).get("name") == "blend"]
    assert len(runs) == 2 * len(own) == 8
    assert all(run["test_accuracy"] > run["zero_shot_accuracy"] - 3 for run in own)
    report = taskres("report", "runs/glyph-clip-bundled/digits", "--out", "page.html", "--device", "cpu")
    assert (report.status, "blend-source-" in Path("page.html").read_text()) == (0, True)


def test_the_method_of_the_example_sees_no_test_image() -> None:
    assert "test(" not in EXAMPLE.read_text()
