"""Tip-Adapter against plain loops, and one case by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask, Images, Text
from taskres_cache.methods.memory.tip_adapter import METHOD, TipAdapterOptions, fit
from tests.methods.tasks import random_task, without_images_of


def by_loops(task: FewShotTask, queries: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Return the logits of queries, one query, image and class at a time."""
    views = task.augmented.image_features
    logits = []
    for query in queries:
        direction = query / np.linalg.norm(query)
        row = [task.logit_scale * float(direction @ text) for text in task.text.ensemble]
        for image, label in enumerate(task.train.labels):
            key = sum(view[image] for view in views) / len(views)
            row[label] += alpha * np.exp(-beta * (1 - direction @ key / np.linalg.norm(key)))
        logits.append(row)
    return np.array(logits)


@pytest.mark.parametrize("views", [0, 3])
def test_without_val_the_values_are_fixed(views: int) -> None:
    task = random_task(views=views, val_per_class=0)
    adapted = fit(task, METHOD.options)
    assert adapted.chosen == {"alpha": 1.0, "beta": 5.0}
    assert adapted.trials == ()
    queries = random_task(seed=2).train.image_features
    logits = adapted.head.logits(torch.from_numpy(queries))
    assert np.allclose(logits, by_loops(task, queries, 1.0, 5.0), atol=1e-10)


def test_by_hand() -> None:
    train = Images(np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([0, 1]))
    text = Text(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    head = fit(FewShotTask(train, text, 10.0, 1, 1), TipAdapterOptions(alpha=2.0, beta=5.0)).head
    logits = head.logits(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    assert logits.tolist() == [[pytest.approx(6 + 2 * np.exp(-2)), pytest.approx(8 + 2 * np.exp(-1))]]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_alpha_and_beta_are_the_best_of_the_grid_on_val(seed: int) -> None:
    task = random_task(seed=seed, val_per_class=6)
    assert task.val is not None
    options = TipAdapterOptions(smallest=0.25, largest=16.0, points=4)
    adapted = fit(task, options)
    ranks = []
    for alpha in (0.25, 1.0, 4.0, 16.0):
        for beta in (0.25, 1.0, 4.0, 16.0):
            logits = torch.from_numpy(by_loops(task, task.val.image_features, alpha, beta))
            labels = torch.from_numpy(task.val.labels)
            accuracy = 100 * (logits.argmax(dim=1) == labels).double().mean().item()
            ranks.append((accuracy, -torch.nn.functional.cross_entropy(logits, labels).item(), alpha, beta))
    ranks.sort(reverse=True)
    assert [trial.rank for trial in adapted.trials] == [pytest.approx(rank[:2]) for rank in ranks]
    assert adapted.chosen == {"alpha": pytest.approx(ranks[0][2]), "beta": pytest.approx(ranks[0][3])}
    queries = random_task(seed=9).train.image_features
    logits = adapted.head.logits(torch.from_numpy(queries))
    assert np.allclose(logits, by_loops(task, queries, *ranks[0][2:]), atol=1e-8)


def test_at_most_50_trials_are_kept() -> None:
    adapted = fit(random_task(), METHOD.options)
    assert len(adapted.trials) == 50
    assert adapted.trials[0].settings == adapted.chosen


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(dim=7, dtype=np.float32),
        without_images_of(random_task(), label=1),
        without_images_of(random_task(), label=2, keep=1),
    ],
)
def test_small_and_incomplete_training_sets(task: FewShotTask) -> None:
    before = task.train.image_features.copy()
    adapted = fit(task, METHOD.options)
    assert adapted.head.logits(torch.from_numpy(before)).isfinite().all()
    assert all(tensor.dtype == before.dtype for tensor in adapted.head.tensors().values())
    assert adapted.head.classes == task.classes
    assert np.array_equal(task.train.image_features, before)


def test_val_without_a_class() -> None:
    task = random_task()
    assert task.val is not None
    some = task.val.labels != 0
    val = Images(task.val.image_features[some], task.val.labels[some])
    assert fit(replace(task, val=val), METHOD.options).trials


def test_features_that_are_not_finite_are_an_error() -> None:
    task = random_task(views=0)
    features = task.train.image_features.copy()
    features[0, 0] = np.nan
    with pytest.raises(FitError, match="finite"):
        fit(replace(task, train=Images(features, task.train.labels)), METHOD.options)
