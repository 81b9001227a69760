"""The order of labels, compared with a plain greedy choice."""

import numpy as np
import pytest

from taskres_cache.choosing.label_order import (
    coverage_order,
    nearest_chosen,
    uncertainty_weights,
    without_nearly_equal,
)


def plain_greedy(features: np.ndarray, count: int, labelled: np.ndarray, weights: np.ndarray) -> list[int]:
    """Choose one image after the other by trying all of them: the rule written a second time."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    known = labelled / np.linalg.norm(labelled, axis=1, keepdims=True) if len(labelled) else labelled
    chosen: list[int] = []
    for _ in range(count):
        costs = {}
        for candidate in set(range(len(unit))) - set(chosen):
            medoids = np.concatenate([known, unit[[*chosen, candidate]]])
            distances = np.square(unit[:, None] - medoids[None]).sum(axis=2).min(axis=1)
            costs[candidate] = float((weights * np.minimum(distances, 2)).sum())
        chosen.append(min(costs, key=lambda row: costs[row]))
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("labels", [0, 5])
def test_the_order_is_that_of_a_plain_greedy_choice(seed: int, labels: int) -> None:
    draw = np.random.default_rng(seed)
    features, labelled = draw.normal(size=(40, 6)), draw.normal(size=(labels, 6))
    weights = draw.uniform(size=40)
    order = coverage_order(features, 12, labelled, weights)
    assert order.rows.tolist() == plain_greedy(features, 12, labelled, weights)
    assert (np.diff(order.gains) <= 1e-12).all()


def test_every_group_gets_one_before_any_gets_two() -> None:
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), [40, 10, 10, 5])
    features = 5 * np.eye(4, 16)[groups] + draw.normal(scale=0.3, size=(65, 16))
    rows = coverage_order(features, 4).rows
    assert sorted(groups[rows].tolist()) == [0, 1, 2, 3]
    assert groups[rows[0]] == 0
    (left,) = coverage_order(features, 1, features[groups != 3]).rows
    assert groups[left] == 3


def test_uncertain_images_come_first() -> None:
    features = np.eye(3).repeat(5, axis=0) + np.random.default_rng(0).normal(scale=0.01, size=(15, 3))
    weights = np.repeat([0.0, 1.0, 0.1], 5)
    assert (coverage_order(features, 2, weights=weights).rows // 5).tolist() == [1, 2]


def test_nearly_equal_images_are_chosen_once() -> None:
    features = np.random.default_rng(0).normal(size=(6, 32))
    copies = np.concatenate([features, 3 * features + 1e-4])
    rows = coverage_order(copies, 12).rows
    assert sorted(rows % 6) == list(range(6))
    assert without_nearly_equal(copies, features[:2]).tolist() == [2, 3, 4, 5, 8, 9, 10, 11]


def test_the_nearest_chosen_image() -> None:
    features = np.array([[1.0, 0], [0, 2], [3, 1], [1, 3]])
    assert nearest_chosen(features, np.array([1, 0])).tolist() == [1, 0, 1, 0]


def test_uncertainty_counts_from_four_labels_per_class() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert uncertainty_weights(probabilities, 11) is None
    weights = uncertainty_weights(probabilities, 12)
    assert weights is not None
    assert weights == pytest.approx([0.8, 0.3])
