"""Intervals and comparisons against numbers computed by hand, scipy, enumeration, and simulated coverage."""

from itertools import product
from math import sqrt
from time import process_time

import numpy as np
import pytest
from scipy.stats import binomtest

from taskres_cache.runs.statistics.intervals import (
    Hits,
    accuracy_interval,
    mean_class_accuracy,
    mean_class_accuracy_interval,
    paired_difference,
    sign_test,
)


def one_fit(*correct: int) -> Hits:
    return Hits(np.array(correct))


def test_an_accuracy_has_wilsons_interval() -> None:
    # 8 of 10, z = 1.96: centre (0.8 + 0.19208) / 1.38416, half width 1.96 sqrt(0.016 + 0.009604) / 1.38416
    assert accuracy_interval(one_fit(*[1] * 8, 0, 0)) == pytest.approx((49.01, 94.33), abs=0.01)


@pytest.mark.parametrize(("correct", "images"), [(0, 1), (1, 1), (0, 20), (20, 20), (342, 359), (40000, 50000)])
def test_the_interval_is_that_of_scipy(correct: int, images: int) -> None:
    expected = binomtest(correct, images).proportion_ci(method="wilson")
    found = accuracy_interval(Hits(np.arange(images) < correct))
    assert found == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_fits_that_agree_are_no_further_images() -> None:
    correct = np.arange(100) < 90
    assert accuracy_interval(Hits.of_fits([correct] * 3)) == pytest.approx(accuracy_interval(Hits(correct)))
    shifted = Hits.of_fits([correct, np.roll(correct, 10), np.roll(correct, 20)])  # each fit errs on other images
    low, high = accuracy_interval(shifted)
    assert high - low < 0.7 * np.diff(accuracy_interval(Hits(correct)))[0]


def test_mean_class_accuracy_weighs_classes_equally() -> None:
    hits, labels = one_fit(1, 1, 1, 0, 1, 0), np.array([0, 0, 0, 0, 2, 2])  # 3/4 and 1/2; class 1 has no image
    assert mean_class_accuracy(hits, labels) == 62.5
    variance = (0.75 * 0.25 / 3 + 0.5 * 0.5 / 1) / 4
    images = 0.625 * 0.375 / variance
    z = 1.959964
    centre = (0.625 + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z * sqrt(0.625 * 0.375 / images + z**2 / (4 * images**2)) / (1 + z**2 / images)
    found = mean_class_accuracy_interval(hits, labels)
    assert found == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-3)


def test_an_interval_is_never_a_point() -> None:
    labels = np.repeat(np.arange(10), 36)
    low, high = mean_class_accuracy_interval(Hits(np.ones(360, int)), labels)
    assert (low, high) == pytest.approx((98.94, 100), abs=0.01)  # the Wilson interval of 360 of 360
    assert mean_class_accuracy_interval(Hits(np.array([1, 0])), np.array([0, 1])) != (50, 50)


@pytest.mark.parametrize(("per_class", "classes"), [(2, 60), (5, 20), (36, 10)])
def test_95_of_100_intervals_contain_the_mean_class_accuracy(per_class: int, classes: int) -> None:
    rng = np.random.default_rng(per_class)
    truth, labels = rng.beta(6, 1, classes), np.repeat(np.arange(classes), per_class)
    contained = 0
    for _ in range(1000):
        low, high = mean_class_accuracy_interval(Hits(rng.random(len(labels)) < truth[labels]), labels)
        contained += low <= 100 * truth.mean() <= high
    assert 925 <= contained <= 985


def test_a_difference_is_that_of_bonett_and_price() -> None:
    # 100 images: 12 only by the first, 2 only by the second. p = 13/102 and 3/102.
    hits, others = Hits(np.arange(100) < 82), Hits((np.arange(100) < 70) | (np.arange(100) >= 98))
    found = paired_difference(hits, others)
    first, second = 13 / 102, 3 / 102
    half = 1.959964 * sqrt((first + second - (first - second) ** 2) / 102)
    assert found.difference == pytest.approx(10.0)
    assert found.interval == pytest.approx((100 * (10 / 102 - half), 100 * (10 / 102 + half)), abs=1e-4)
    assert found.p_value == pytest.approx(binomtest(12, 14).pvalue)


@pytest.mark.parametrize(("more", "fewer"), [(0, 0), (1, 0), (3, 3), (6, 0), (10, 4), (900, 700)])
def test_the_p_value_is_mcnemars_exact_one(more: int, fewer: int) -> None:
    steps = np.array([1] * more + [-1] * fewer + [0] * 5)
    expected = binomtest(more, more + fewer).pvalue if more + fewer else 1.0
    assert sign_test(steps) == pytest.approx(expected)
    assert sign_test(3 * steps) == pytest.approx(expected)


def test_the_p_value_over_several_fits_counts_all_signs() -> None:
    steps = np.array([3, 3, 2, -1, 1, 0, 2, -3, 1])
    sums = [
        sum(sign * abs(step) for sign, step in zip(signs, steps, strict=True)) for signs in product((1, -1), repeat=9)
    ]
    expected = np.mean([abs(one) >= abs(steps.sum()) for one in sums])
    assert sign_test(steps) == pytest.approx(expected)


def test_equal_classifiers_differ_by_chance_only() -> None:
    hits = Hits(np.arange(50) < 40)
    found = paired_difference(hits, Hits.of_fits([hits.counts > 0] * 3))
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.interval[0] == -found.interval[1] != 0


def test_nineteen_in_twenty_differences_are_contained_and_one_in_twenty_equal_pairs_looks_different() -> None:
    rng, contained, significant = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        kinds = rng.choice(3, size=200, p=[0.06, 0.02, 0.92])
        found = paired_difference(Hits(kinds != 1), Hits(kinds != 0))
        contained += found.interval[0] <= 4.0 <= found.interval[1]
        equal = rng.choice(3, size=200, p=[0.05, 0.05, 0.9])
        significant += paired_difference(Hits(equal != 1), Hits(equal != 0)).p_value < 0.05
    assert 930 <= contained <= 985
    assert significant <= 60


def test_fifty_thousand_images_take_no_time() -> None:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(1000), 50)
    hits, others = (Hits.of_fits([rng.random(50000) < chance for _ in range(3)]) for chance in (0.7, 0.69))
    started = process_time()
    accuracy_interval(hits), mean_class_accuracy_interval(hits, labels), paired_difference(hits, others)
    assert process_time() - started < 1.0  # 0.05 s on an idle core
