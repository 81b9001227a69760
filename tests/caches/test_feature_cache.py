"""The cache file: round trip, checksums, and every kind of invalid file."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from taskres_cache.caches.contents import CacheContents, cache_path
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.finding import find_cache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets.sampling import ALL_SHOTS
from taskres_cache.errors import CacheDamagedError, CacheError, CacheMismatchError, OptionError, UnknownNameError


def test_round_trip(cache_file: Path, contents: CacheContents) -> None:
    cache = FeatureCache(cache_file)
    read = cache.contents()
    assert read.provenance == contents.provenance
    for name in ("classnames", "paths", "stamps", "skipped"):
        assert getattr(read, name) == getattr(contents, name)
    for name in ("labels", "partitions", "image_features"):
        assert np.array_equal(getattr(read, name), getattr(contents, name))
    assert read.text.templates == contents.text.templates
    assert np.array_equal(read.text.embeddings, contents.text.embeddings)
    assert read.splits.keys() == contents.splits.keys()
    assert read.splits[1, 1].train.tolist() == [5, 0, 7]
    assert cache.rows("test").tolist() == list(range(15, 24))


def test_types_and_attributes_match_the_format(cache_file: Path) -> None:
    with h5py.File(cache_file) as file:
        assert file.attrs["format"] == b"taskres-cache"
        assert file.attrs["format_version"] == 1
        assert file.attrs["logit_scale"] == 100.0
        types = {name: file[name].dtype for name in ("images/label", "images/partition", "splits/shots_1/seed_1/train")}
        assert [str(kind) for kind in types.values()] == ["int32", "uint8", "int64"]
        assert file["text/embeddings"].shape == (3, 2, 8)
        arrays = [name for name in _names(file) if file[name].size]
        assert all(file[name].fletcher32 for name in arrays)
        assert len(arrays) > 10


def _names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def test_features_come_in_the_order_of_the_rows(cache_file: Path, contents: CacheContents) -> None:
    rows = np.array([20, 3, 3, 0, 23])
    assert np.array_equal(FeatureCache(cache_file).image_features(rows), contents.image_features[rows])
    assert FeatureCache(cache_file).image_features(np.array([], np.int64)).shape == (0, 8)


def test_features_over_many_chunks(tmp_path: Path, contents: CacheContents) -> None:
    wide = np.random.default_rng(0).normal(size=(24, 100_000)).astype(np.float16)
    embeddings = np.repeat(np.eye(3, 100_000, dtype=np.float32), 2, axis=0).reshape(3, 2, -1)
    text = type(contents.text)(contents.text.templates, embeddings)
    write_cache(tmp_path / "wide.h5", CacheContents(**{**vars(contents), "image_features": wide, "text": text}))
    rows = np.array([23, 1, 22, 0, 11])
    cache = FeatureCache(tmp_path / "wide.h5")
    assert cache.image_features(rows).dtype == np.float32
    assert np.array_equal(cache.image_features(rows), wide[rows].astype(np.float32))
    assert cache.text_bases().projection is None


def test_a_flipped_byte_anywhere_is_found_or_changes_nothing(cache_file: Path, tmp_path: Path) -> None:
    original = cache_file.read_bytes()
    intact = _everything(FeatureCache(cache_file))
    found = 0
    for position in range(0, len(original), 37):
        damaged = bytearray(original)
        damaged[position] ^= 0xFF
        file = tmp_path / "damaged.h5"
        file.write_bytes(damaged)
        try:
            cache = FeatureCache(file)
            cache.verify()
            assert _everything(cache) == intact, f"byte {position} changed the contents without an error"
        except CacheError as error:
            assert str(file) in str(error)
            found += 1
    assert found > 50


def _everything(cache: FeatureCache) -> tuple:
    read = cache.contents()
    arrays = [read.labels, read.partitions, read.image_features, read.text.embeddings]
    splits = [(name, split.train.tolist(), split.val.tolist()) for name, split in read.splits.items()]
    return repr(read.provenance), read.classnames, read.paths, read.stamps, [a.tobytes() for a in arrays], splits


def test_a_flipped_feature_byte_is_found_by_verify_and_by_a_plain_read(
    cache_file: Path, contents: CacheContents
) -> None:
    raw = cache_file.read_bytes()
    where = raw.index(contents.image_features[4].tobytes())
    cache_file.write_bytes(raw[:where] + bytes([raw[where] ^ 1]) + raw[where + 1 :])
    cache = FeatureCache(cache_file)
    with pytest.raises(CacheDamagedError, match="truncated or damaged"):
        cache.verify()
    with pytest.raises(CacheDamagedError, match="delete it and run the command"):
        cache.image_features(np.array([0]))


@pytest.mark.parametrize("share", [0.999, 0.5, 0.02])
def test_truncated_file(cache_file: Path, share: float) -> None:
    raw = cache_file.read_bytes()
    cache_file.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(CacheDamagedError, match="truncated or damaged"):
        FeatureCache(cache_file)


def test_files_that_are_not_caches(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(CacheError, match="not an HDF5 file"):
        FeatureCache(tmp_path / "text.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CacheError, match="not a taskres-cache file"):
        FeatureCache(tmp_path / "foreign.h5")
    with pytest.raises(CacheError, match="does not exist"):
        FeatureCache(tmp_path / "none.h5")


def test_newer_format(cache_file: Path) -> None:
    with h5py.File(cache_file, "r+") as file:
        file.attrs["format_version"] = 3
    with pytest.raises(CacheError, match="format version 3.*upgrade taskres-cache"):
        FeatureCache(cache_file)


def test_class_ids_are_stored_and_must_match_the_number_of_classes(cache_file: Path, contents: CacheContents) -> None:
    assert FeatureCache(cache_file).class_ids is None
    write_cache(cache_file, replace(contents, class_ids=("n1", "n2", "n3")))
    assert FeatureCache(cache_file).contents().class_ids == ("n1", "n2", "n3")
    write_cache(cache_file, replace(contents, class_ids=("n1", "n2")))
    with pytest.raises(CacheError, match=r"class_ids has shape \(2,\), expected \(3,\)"):
        FeatureCache(cache_file)


def test_a_missing_label_array(cache_file: Path) -> None:
    with h5py.File(cache_file, "r+") as file:
        del file["images/label"]
    with pytest.raises(CacheError, match="has no array images/label; make the cache again"):
        FeatureCache(cache_file)


def test_a_missing_split_names_the_available_ones_and_the_remedy(cache_file: Path) -> None:
    with pytest.raises(OptionError) as error:
        FeatureCache(cache_file).split(16, 3)
    assert "no split with 16 shots and seed 3 (available: shots 1, 4 with seeds 1, 2)" in str(error.value)
    assert "--shots 16 --seeds 3" in str(error.value)


def test_a_split_of_all_images_is_stored_under_its_word(tmp_path: Path, contents: CacheContents) -> None:
    path, split = tmp_path / "all.h5", contents.splits[4, 1]
    write_cache(path, replace(contents, splits={**contents.splits, (ALL_SHOTS, 1): split}))
    with h5py.File(path) as file:
        assert set(file["splits"]) == {"shots_1", "shots_4", "shots_all"}
    cache = FeatureCache(path)
    assert np.array_equal(cache.split(ALL_SHOTS, 1).train, split.train)
    assert list(cache.splits)[-1] == (ALL_SHOTS, 1)
    with pytest.raises(OptionError, match=r"no split with all shots and seed 5 .*shots all with seeds 1.*--shots all"):
        cache.split(ALL_SHOTS, 5)


def test_expectations_list_every_differing_field(cache_file: Path, provenance: Provenance) -> None:
    cache = FeatureCache(cache_file)
    cache.expect("remedy", weights_sha256=provenance.weights_sha256, templates=cache.templates)
    with pytest.raises(
        CacheMismatchError, match=r"precision: cache has 'fp32', expected 'bf16'; templates: .*; do this"
    ):
        cache.expect("do this", precision="bf16", templates=("a {}.",), backbone="tower")


def test_a_failed_write_keeps_the_existing_file(cache_file: Path, contents: CacheContents) -> None:
    before = cache_file.read_bytes()
    broken = CacheContents(**{**vars(contents), "labels": None})
    with pytest.raises(AttributeError):
        write_cache(cache_file, broken)
    assert cache_file.read_bytes() == before
    assert [path.name for path in cache_file.parent.iterdir()] == ["toy.h5"]


def test_finding_a_cache(tmp_path: Path, cache_file: Path) -> None:
    folder = tmp_path / "cache"
    assert find_cache("toy", folder) == cache_file == cache_path(folder, "tower", "random", "toy")
    assert find_cache(str(cache_file), Path("elsewhere")) == cache_file
    with pytest.raises(UnknownNameError, match="unknown cache 'toi'; did you mean 'toy'"):
        find_cache("toi", folder)
    shutil.copytree(cache_file.parent, folder / "tower-other")
    with pytest.raises(OptionError, match=r"several checkpoints; pass one of .*tower-other.*tower-random"):
        find_cache("toy", folder)


def test_a_minimal_cache_by_another_program(tmp_path: Path) -> None:
    """It has variable-length strings, no checksums, and only the arrays and attributes of the first design."""
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        names = ("dataset", "backbone", "pretrained", "weights_sha256", "created_at", "created_by")
        file.attrs.update({"format": "taskres-cache", "format_version": 1, "logit_scale": 100.0, "preprocess": "{}"})
        file.attrs.update(dict.fromkeys(names, "theirs"))
        file["classnames"], file["text/templates"], file["images/path"] = ["a", "é"], ["{}"], ["1", "2", "3"]
        file["images/label"], file["images/partition"] = np.int32([0, 1, 1]), np.uint8([0, 0, 2])
        file["features/center"], file["text/embeddings"] = (
            np.eye(3, 4, dtype=np.float16),
            np.eye(2, 4, dtype=np.float32)[:, None],
        )
        file["splits/shots_1/seed_1/train"], file["splits/shots_1/seed_1/val"] = [0, 1], np.zeros(0, np.int64)
    cache = FeatureCache(tmp_path / "theirs.h5")
    assert cache.classnames == ("a", "é")
    assert cache.split(1, 1).train.tolist() == [0, 1]
    assert cache.image_features(np.array([2])).tolist() == [[0, 0, 1, 0]]
    assert (cache.provenance.model_config, cache.provenance.precision) == ("theirs", "unknown")
    assert cache.contents().stamps == ("unknown",) * 3
    assert cache.verify()["features/center"] == 24


@pytest.mark.parametrize("name", ["features/center", "text/embeddings", "images/path"])
def test_a_missing_array_is_named(cache_file: Path, name: str) -> None:
    with h5py.File(cache_file, "r+") as file:
        del file[name]
    with pytest.raises(CacheError, match=f"has no array {name}; make the cache again"):
        FeatureCache(cache_file)


@pytest.mark.parametrize(
    ("name", "value"), [("images/label", 3), ("splits/shots_1/seed_1/train", 24), ("images/label", -1)]
)
def test_numbers_out_of_range_are_rejected(cache_file: Path, name: str, value: int) -> None:
    with h5py.File(cache_file, "r+") as file:
        file[name][0] = value
    with pytest.raises(CacheError, match="has values outside 0-"):
        FeatureCache(cache_file)


def test_reading_does_not_change_the_file(cache_file: Path) -> None:
    before = cache_file.stat()
    cache = FeatureCache(cache_file)
    cache.verify()
    cache.contents()
    after = cache_file.stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


def test_arrays_with_mismatched_shapes_are_rejected(cache_file: Path) -> None:
    with h5py.File(cache_file, "r+") as file:
        del file["text/embeddings"]
        file["text/embeddings"] = np.ones((3, 2, 5), np.float32)
    with pytest.raises(CacheError, match=r"text/embeddings has shape \(3, 2, 5\), expected \(3, 2, 8\)"):
        FeatureCache(cache_file)


def test_a_notebook_shows_the_main_facts(cache_file: Path) -> None:
    html = FeatureCache(cache_file)._repr_html_()
    facts = dict(re.findall(r"<th[^>]*>([^<]*)</th><td[^>]*>([^<]*)</td>", html))
    cache = FeatureCache(cache_file)
    assert facts == {
        "data set": "toy",
        "backbone": "tower",
        "checkpoint": "random",
        "images": "12 train, 3 val, 9 test",
        "classes": "3",
        "few-shot splits": "shots 1, 4 with seeds 1, 2",
        "augmented views": "none",
        "embedding size": "8",
        "precision": "fp32",
        "path": str(cache_file),
        "created": f"{cache.created_at} by {cache.created_by}",
    }
    assert html.startswith("<table>")
    assert html.endswith("</table>")
    assert "color" not in html
    assert "background" not in html


def test_a_notebook_shows_names_from_a_file_as_text(cache_file: Path, contents: CacheContents) -> None:
    hostile = replace(contents.provenance, dataset="<script>alert('x')", backbone='a"&b', precision="<b>")
    folder = cache_file.parent / "<i>"
    write_cache(folder / "toy.h5", replace(contents, provenance=hostile))
    html = FeatureCache(folder / "toy.h5")._repr_html_()
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in html
    assert "a&quot;&amp;b" in html
    assert "&lt;i&gt;" in html
    assert not re.search("<(script|i|b)>", html)
