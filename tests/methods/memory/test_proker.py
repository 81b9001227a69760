"""ProKeR against a linear solve with loops, and its limit of rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask, Images
from taskres_cache.methods.memory.proker import METHOD, ProkerOptions, fit
from tests.methods.tasks import random_task, without_images_of

OPTIONS = ProkerOptions(betas=(0.5, 3.0), lambdas=(0.05, 1.0))


def by_loops(task: FewShotTask, queries: np.ndarray, beta: float, ridge: float) -> np.ndarray:
    """Return the logits of queries, with the kernel filled element by element and one linear system."""
    views = task.augmented.image_features
    rows = [feature / np.linalg.norm(feature) for view in views for feature in view]
    labels = [label for _ in views for label in task.train.labels]
    text = task.text.ensemble

    def kernel(left: np.ndarray, right: np.ndarray) -> float:
        return float(np.exp(-beta * (1 - left @ right)))

    gram = np.array([[kernel(left, right) for right in rows] for left in rows])
    missed = np.array(
        [[float(label == one) - row @ text[one] for one in range(len(text))]
         for row, label in zip(rows, labels, strict=True)]
    )  # fmt: skip
    values = np.linalg.solve(gram / ridge + np.eye(len(rows)), missed)
    logits = []
    for query in queries:
        direction = query / np.linalg.norm(query)
        near = np.array([kernel(direction, row) for row in rows])
        logits.append(task.logit_scale * (text @ direction + near @ values))
    return np.array(logits)


@pytest.mark.parametrize("views", [0, 2])
def test_it_agrees_with_a_linear_solve(views: int) -> None:
    task = random_task(views=views)
    assert task.val is not None
    adapted = fit(task, OPTIONS)
    best = []
    for beta in OPTIONS.betas:
        for ridge in OPTIONS.lambdas:
            logits = torch.from_numpy(by_loops(task, task.val.image_features, beta, ridge))
            labels = torch.from_numpy(task.val.labels)
            accuracy = 100 * (logits.argmax(dim=1) == labels).double().mean().item()
            best.append((accuracy, -torch.nn.functional.cross_entropy(logits, labels).item(), beta, ridge))
    ranks = sorted(best, reverse=True)
    assert [trial.rank for trial in adapted.trials] == [pytest.approx(rank[:2]) for rank in ranks]
    assert adapted.chosen == {"beta": ranks[0][2], "lambda": ranks[0][3]}
    queries = random_task(seed=2).train.image_features
    expected = by_loops(task, queries, *ranks[0][2:])
    assert np.allclose(adapted.head.logits(torch.from_numpy(queries)), expected, atol=1e-8)


def test_without_val_the_values_are_fixed() -> None:
    task = random_task(val_per_class=0)
    adapted = fit(task, OPTIONS)
    assert adapted.chosen == {"beta": 1.0, "lambda": 1.0}
    queries = random_task(seed=2).train.image_features
    assert np.allclose(adapted.head.logits(torch.from_numpy(queries)), by_loops(task, queries, 1, 1), atol=1e-8)


def test_views_are_dropped_before_images() -> None:
    task = random_task(views=3)
    one_view = replace(task, views=None, train=replace(task.train, image_features=task.augmented.image_features[0]))
    limited = fit(task, replace(OPTIONS, most_rows=23)).head.tensors()
    assert np.array_equal(limited["keys"], fit(one_view, OPTIONS).head.tensors()["keys"])
    assert np.allclose(limited["values"], fit(one_view, OPTIONS).head.tensors()["values"])


def test_more_images_than_rows_are_regressed_on_balanced_centres() -> None:
    task = random_task(shots=5, views=0, val_per_class=0)
    adapted = fit(task, replace(OPTIONS, most_rows=8))
    keys = adapted.head.tensors()["keys"]
    rows = task.train.image_features / np.linalg.norm(task.train.image_features, axis=1, keepdims=True)
    positions = [int(np.flatnonzero((rows == key).all(axis=1))[0]) for key in keys]
    assert np.bincount(task.train.labels[positions]).tolist() == [2, 2, 2, 2]
    between = np.exp(keys @ rows.T - 1)
    missed = np.eye(4)[task.train.labels] - rows @ task.text.ensemble.T
    of_centres = np.exp(keys @ keys.T - 1) + 1e-6 * np.eye(8)
    expected = np.linalg.solve(between @ between.T + of_centres, between @ missed)
    assert np.allclose(adapted.head.tensors()["values"], expected, atol=1e-7)


def test_centres_that_are_nearly_all_images_change_little() -> None:
    task = random_task(shots=5, views=0, val_per_class=0)
    queries = torch.from_numpy(random_task(seed=2).train.image_features)
    exact, approximate = fit(task, OPTIONS).head, fit(task, replace(OPTIONS, most_rows=19)).head
    assert (exact.logits(queries) - approximate.logits(queries)).abs().max() < 0.5


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(dim=7, dtype=np.float32),
        random_task(classes=2, shots=1, dtype=np.float32),
        without_images_of(random_task(), label=1),
        without_images_of(random_task(), label=2, keep=1),
    ],
)
def test_small_and_incomplete_training_sets(task: FewShotTask) -> None:
    before = task.train.image_features.copy()
    head = fit(task, METHOD.options).head
    assert head.logits(torch.from_numpy(before)).isfinite().all()
    assert all(tensor.dtype == before.dtype for tensor in head.tensors().values())
    assert np.array_equal(task.train.image_features, before)


def test_features_that_are_not_finite_are_an_error() -> None:
    task = random_task(views=0)
    features = task.train.image_features.copy()
    features[0, 0] = np.nan
    with pytest.raises(FitError, match="finite"):
        fit(replace(task, train=Images(features, task.train.labels)), OPTIONS)
