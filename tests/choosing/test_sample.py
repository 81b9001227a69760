"""The stratified sample on which models are tried."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from taskres_cache.choosing.sample import stratified_sample
from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.datasets.dataset import Item
from taskres_cache.errors import DatasetError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", Path())


def test_classes_have_equal_shares_and_test_stays_unseen(digits: Dataset) -> None:
    sample = stratified_sample(digits)
    assert Counter(sample.labels.tolist()) == dict.fromkeys(range(10), 20)
    assert len(stratified_sample(digits, 100).paths) == 100
    labels = {item.path: item.label for item in (*digits.train, *digits.val)}
    assert [labels[path] for path in sample.paths] == sample.labels.tolist()
    assert not {item.path for item in digits.test} & set(sample.paths)


def test_the_seed_decides(digits: Dataset) -> None:
    assert stratified_sample(digits).paths == stratified_sample(digits).paths
    assert stratified_sample(digits).paths != stratified_sample(digits, seed=1).paths


def test_of_many_classes_some_are_drawn(digits: Dataset) -> None:
    sample = stratified_sample(digits, 20)
    assert len(sample.classnames) == 5
    assert len(sample.paths) == 20
    by_path = {item.path: digits.classnames[item.label] for item in (*digits.train, *digits.val)}
    assert [by_path[path] for path in sample.paths] == [sample.classnames[label] for label in sample.labels]


def test_small_classes_give_what_they_have(dataset: Dataset) -> None:
    sample = stratified_sample(dataset)
    assert Counter(sample.labels.tolist()) == dict.fromkeys(range(3), 8)


def test_a_test_only_data_set_is_sampled_from_test(dataset: Dataset) -> None:
    only = replace(dataset, train=(), val=(), test=(*dataset.train, *dataset.test))
    assert set(stratified_sample(only).paths) <= {item.path for item in only.test}


def test_too_few_images(dataset: Dataset) -> None:
    train = tuple(Item(f"{label}.png", label) for label in range(3))
    with pytest.raises(DatasetError, match="two classes with two images"):
        stratified_sample(replace(dataset, train=train, val=()))
