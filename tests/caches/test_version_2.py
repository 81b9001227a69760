"""Format 2: pre-projections, families of views, named prompts; and format 1, which stays readable."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from taskres_cache.caches.class_halves import open_cache
from taskres_cache.caches.contents import CacheContents, ImageProjection, PromptSet, ViewFamily
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import CacheDamagedError, CacheError, UnknownNameError
from tests.conftest import Taskres

NARROW = {"seed": 3, "scale": [0.5, 1.0]}
LABELS = np.array([0, 0, 0, 1, 2, 2])
TEXTS = ("black fur", "a cat at night", "été", "a dog", "summer", "sun")


@pytest.fixture
def everything(contents: CacheContents) -> CacheContents:
    """The toy cache with every part of format 2; 5 inputs of the image projection, which has a bias."""
    rng = np.random.default_rng(1)
    projection = ImageProjection(*(rng.normal(size=size).astype(np.float32) for size in ((5, 8), 8)))
    inputs, wide, narrow = (rng.normal(size=size).astype(np.float32) for size in ((24, 5), (12, 2, 5), (12, 3, 5)))
    words = rng.normal(size=(6, 8)).astype(np.float32)  # the text projection is the identity
    return replace(
        contents,
        image_features=projection.applied(inputs),
        image_projection=projection,
        pre_projection=inputs,
        augmented=projection.applied(wide),
        augmented_rows=np.arange(12),
        augmented_pre_projection=wide,
        families={"narrow": ViewFamily(NARROW, np.arange(12), projection.applied(narrow), narrow)},
        prompts={"cupl": PromptSet(TEXTS, LABELS, words, words)},
    )


@pytest.fixture
def full(tmp_path: Path, everything: CacheContents) -> Path:
    path = tmp_path / "cache" / "tower-random" / "full.h5"
    write_cache(path, everything)
    return path


def test_round_trip(full: Path, everything: CacheContents) -> None:
    cache = FeatureCache(full)
    for read in (cache.contents(), cache.stored_contents()):
        for name in ("image_features", "pre_projection", "augmented", "augmented_pre_projection"):
            assert np.array_equal(getattr(read, name)[:], getattr(everything, name))
        assert np.array_equal(read.image_projection.weights, everything.image_projection.weights)
        assert np.array_equal(read.image_projection.bias, everything.image_projection.bias)
        narrow, expected = read.families["narrow"], everything.families["narrow"]
        assert narrow.settings == NARROW
        assert np.array_equal(narrow.image_features[:], expected.image_features)
        assert np.array_equal(narrow.pre_projection[:], expected.pre_projection)
        assert narrow.rows.tolist() == list(range(12))
        assert read.prompts["cupl"].texts == TEXTS
        assert read.prompts["cupl"].labels.tolist() == LABELS.tolist()
        assert np.array_equal(read.prompts["cupl"].embeddings, everything.prompts["cupl"].embeddings)
    write_cache(full.with_name("again.h5"), cache.stored_contents())
    assert FeatureCache(full.with_name("again.h5")).verify() == cache.verify()


def test_the_version_is_2_only_with_parts_of_version_2(full: Path, cache_file: Path) -> None:
    with h5py.File(full) as new, h5py.File(cache_file) as old:
        assert (new.attrs["format_version"], old.attrs["format_version"]) == (2, 1)
        assert old.keys() < new.keys()
        assert set(old.attrs) == set(new.attrs) - {"view_families"}


def test_reading(full: Path, everything: CacheContents) -> None:
    cache, rows = FeatureCache(full), np.array([7, 2, 23])
    assert cache.has_pre_projection
    assert np.array_equal(cache.pre_projection(rows), everything.pre_projection[rows])
    projection = cache.image_projection()
    assert np.allclose(projection.applied(cache.pre_projection(rows)), cache.image_features(rows), atol=1e-6)
    assert {name: tuple(facts) for name, facts in cache.view_families.items()} == {
        "wide": (2, {}, True),
        "narrow": (3, NARROW, True),
    }
    train = np.array([7, 2])
    for family, views in (("wide", everything.augmented), ("narrow", everything.families["narrow"].image_features)):
        ((positions, piece),) = cache.augmented_pieces(train, family)
        assert np.array_equal(piece, views[train[positions]])
        ((positions, inputs),) = cache.augmented_pre_projection_pieces(train, family)
        assert np.allclose(projection.applied(inputs), piece, atol=1e-6)
    assert cache.prompt_sets == ("default", "cupl")
    text = cache.text()
    assert text.texts[:3] == ("a photo of a black cat.", "art of the black cat.", "a photo of a dog.")
    assert text.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(text.embeddings, everything.text.embeddings.reshape(6, 8))
    assert np.array_equal(cache.text("cupl").pre_projection, everything.prompts["cupl"].pre_projection)


def test_a_cache_of_format_1_has_none_of_it(cache_file: Path) -> None:
    cache = FeatureCache(cache_file)
    assert (cache.has_pre_projection, cache.image_projection(), cache.view_families) == (False, None, {})
    assert cache.prompt_sets == ("default",)
    assert cache.text().embeddings.shape == (6, 8)
    with pytest.raises(CacheError, match="no array features/pre_projection.*add them: .*--pre-projection images"):
        cache.pre_projection(np.array([0]))
    with pytest.raises(CacheError, match="no narrow augmented views for row 0; add them: .*--view-family narrow"):
        next(cache.augmented_pieces(np.array([0]), "narrow"))
    with pytest.raises(UnknownNameError, match="unknown set of prompts 'cupl'.*--prompts-name cupl"):
        cache.text("cupl")


def test_names_of_version_2_mean_nothing_in_version_1(cache_file: Path) -> None:
    with h5py.File(cache_file, "r+") as file:
        file["views/narrow/odd"] = file["features/pre_projection"] = np.zeros(3)
    cache = FeatureCache(cache_file)
    assert (cache.has_pre_projection, cache.view_families) == (False, {})
    assert cache.contents().pre_projection is None


def test_half_of_the_classes(full: Path, everything: CacheContents) -> None:
    base = open_cache(full, "base")
    text = base.text("cupl")
    assert text.texts == TEXTS[:4]
    assert text.labels.tolist() == [0, 0, 0, 1]
    assert np.array_equal(text.embeddings, everything.prompts["cupl"].embeddings[:4])
    assert base.text().labels.tolist() == [0, 0, 1, 1]
    assert base.text().texts[-1] == "art of the dog."
    rows = base.rows("train")
    assert np.array_equal(base.pre_projection(rows), everything.pre_projection[rows])
    ((positions, piece),) = base.augmented_pieces(rows, "narrow")
    assert np.array_equal(piece, everything.families["narrow"].image_features[rows[positions]])


NEW_ARRAYS = (
    "features/pre_projection", "features/augmented_pre_projection", "image/projection", "image/projection_bias",
    "views/narrow/features", "views/narrow/rows", "views/narrow/pre_projection", "prompts/cupl/texts",
    "prompts/cupl/class", "prompts/cupl/embeddings", "prompts/cupl/pre_projection",
)  # fmt: skip


@pytest.mark.parametrize("name", NEW_ARRAYS)
def test_a_flipped_byte_in_each_new_array_is_found(full: Path, name: str) -> None:
    with h5py.File(full) as file:
        assert file[name].fletcher32
        place = file[name].id.get_chunk_info(0).byte_offset
    content = bytearray(full.read_bytes())
    content[place + 2] ^= 1
    full.write_bytes(content)
    with pytest.raises(CacheDamagedError, match="truncated or damaged"):
        FeatureCache(full).verify()


def test_every_array_of_a_full_cache_is_in_the_contract(full: Path) -> None:
    page = (Path(__file__).parents[2] / "cache" / "README.md").read_text()
    names = {name.replace("narrow", "NAME").replace("cupl", "NAME") for name in FeatureCache(full).shapes}
    assert [name for name in names if not name.startswith("splits/") and f"`{name}`" not in page] == []


def put(name: str, value: object):
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return change


WRONG = {
    "features/pre_projection has shape \\(24, 4\\), expected \\(24, 5\\)": put(
        "features/pre_projection", np.ones((24, 4))
    ),
    "image/projection_bias has shape \\(5,\\), expected \\(8,\\)": put("image/projection_bias", np.ones(5)),
    "has no array image/projection, which": put("image/projection", None),
    "has no array features/pre_projection, which": put("features/pre_projection", None),
    "has no array views/narrow/rows": put("views/narrow/rows", None),
    "views/narrow/features has shape \\(12, 8\\)": put("views/narrow/features", np.ones((12, 8))),
    "views/narrow/rows has row 12, a val image": put("views/narrow/rows", np.arange(1, 13)),
    "views/narrow/rows has values outside 0-23": put("views/narrow/rows", np.arange(12) + 90),
    "unexpected array views/narrow/odd": put("views/narrow/odd", np.ones(2)),
    "views/'wide' is not a usable name|views/wide": put("views/wide/rows", np.ones(2)),
    "prompts/'-x' is not a usable name|prompts/-x": put("prompts/-x/class", np.ones(2)),
    "prompts/cupl/class is not ascending": put("prompts/cupl/class", LABELS[::-1]),
    "prompts/cupl/class has no prompt of class 1": put("prompts/cupl/class", [0, 0, 0, 0, 2, 2]),
    "prompts/cupl/class has values outside 0-2": put("prompts/cupl/class", LABELS + 1),
    "prompts/cupl/embeddings has shape \\(6, 7\\), expected \\(6, 8\\)": put(
        "prompts/cupl/embeddings", np.ones((6, 7))
    ),
    "prompts/cupl/texts has type integers": put("prompts/cupl/texts", np.arange(6)),
    "has no settings of views/narrow": lambda file: file.attrs.__setitem__("view_families", np.bytes_(b"{}")),
    "attribute view_families is .*, expected a JSON object": lambda file: file.attrs.__setitem__(
        "view_families", np.bytes_(b"[]")
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_parts_are_refused_in_one_line(full: Path, message: str) -> None:
    with h5py.File(full, "r+") as file:
        WRONG[message](file)
    with pytest.raises(CacheError, match=message) as error:
        FeatureCache(full)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["features/pre_projection", "views/narrow/pre_projection", "prompts/cupl/embeddings"])
def test_verify_finds_pre_projections_of_other_features(full: Path, name: str) -> None:
    FeatureCache(full).verify()
    with h5py.File(full, "r+") as file:
        file[name][3] = file[name][3] * 1.01
    with pytest.raises(CacheError, match="row 3 is not its pre-projection times .*relative difference 0.0"):
        FeatureCache(full).verify()


def test_verify_allows_the_rounding_of_the_precision(full: Path, everything: CacheContents) -> None:
    half = {name: getattr(everything, name).astype(np.float16) for name in ("image_features", "pre_projection")}
    coarse = replace(everything, provenance=replace(everything.provenance, precision="fp16"), **half)
    write_cache(full, coarse)
    FeatureCache(full).verify()
    assert FeatureCache(full).contents().pre_projection.dtype == np.float16


@pytest.mark.parametrize("name", ["features/pre_projection", "image/projection", "prompts/cupl/pre_projection"])
def test_values_that_are_not_finite_are_refused_when_they_are_read(full: Path, name: str) -> None:
    with h5py.File(full, "r+") as file:
        file[name][0] = np.nan
    cache = FeatureCache(full)
    with pytest.raises(CacheError, match=f"{name}.*NaN or infinite"):
        cache.contents().prompts, cache.pre_projection(np.arange(24))


def test_inspect_shows_the_parts(full: Path, taskres: Taskres) -> None:
    shown = " ".join(taskres("inspect", full, "--verify").out.split())
    assert "wide 2, narrow 3" in shown
    assert "default, cupl" in shown or "default cupl" in shown
    assert "views/narrow/pre_projection" in shown
    assert "intact" in shown


def test_an_array_of_another_size_is_refused_before_it_is_read(full: Path) -> None:
    shutil.copy(full, full.with_name("large.h5"))
    with h5py.File(full.with_name("large.h5"), "r+") as file:
        del file["features/pre_projection"]
        file.create_dataset("features/pre_projection", (24, 1 << 31), "f4", chunks=(1, 1 << 20), compression="gzip")
    with pytest.raises(CacheError, match="declares arrays of .* bytes but has"):
        FeatureCache(full.with_name("large.h5"))
