"""Base-to-new halves of a cache."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.class_halves import labels_of_half, open_cache
from taskres_cache.caches.contents import CacheContents, TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import CacheError, OptionError


@pytest.mark.parametrize(
    ("classes", "base", "new"),
    [(4, [0, 1], [2, 3]), (5, [0, 1, 2], [3, 4]), (47, list(range(24)), list(range(24, 47)))],
)
def test_base_is_the_first_and_larger_half(classes: int, base: list[int], new: list[int]) -> None:
    assert list(labels_of_half(classes, "base")) == base
    assert list(labels_of_half(classes, "new")) == new
    assert list(labels_of_half(classes, "all")) == base + new


def test_a_half_renumbers_classes_and_drops_rows(cache_file: Path, contents: CacheContents) -> None:
    five = TextBases(contents.text.templates, np.repeat(contents.text.embeddings, 2, axis=0)[:5])
    names, ids = ("a", "b", "c", "d", "e"), ("1", "2", "3", "4", "5")
    labels = np.arange(24, dtype=np.int32) % 5
    write_cache(cache_file, replace(contents, text=five, classnames=names, class_ids=ids, labels=labels))
    whole, new = FeatureCache(cache_file), open_cache(cache_file, "new")
    assert (new.classnames, new.class_ids, new.half) == (("d", "e"), ("4", "5"), "new")
    assert new.rows("test").tolist() == [row for row in range(15, 24) if row % 5 in (3, 4)]
    assert new.labels[new.rows("test")].tolist() == [row % 5 - 3 for row in new.rows("test")]
    assert new.split(4, 2).train.tolist() == [row for row in whole.split(4, 2).train if row % 5 in (3, 4)]
    assert new.split(4, 2).val.tolist() == [13, 14]
    assert np.array_equal(new.text_bases().embeddings, five.embeddings[3:])
    rows = new.rows("train")
    assert np.array_equal(new.image_features(rows), whole.image_features(rows))


def test_all_classes_give_a_plain_feature_cache(cache_file: Path) -> None:
    assert type(open_cache(cache_file)) is FeatureCache


def test_invalid_halves_are_rejected(cache_file: Path) -> None:
    with pytest.raises(OptionError, match="classes must be one of all, base, new, got 'old'"):
        open_cache(cache_file, "old")
    with pytest.raises(CacheError, match="has 3 classes, and its new half has 1; expected at least 2"):
        open_cache(cache_file, "new")
