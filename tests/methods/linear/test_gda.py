"""GDA against numpy with loops and a pseudo-inverse, and on training sets whose covariance is zero or incomplete."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask, Images, Views
from taskres_cache.methods.linear.gda import METHOD, GdaOptions, discriminants, fit
from tests.methods.tasks import random_task, without_images_of

QUERIES = random_task(seed=2).train.image_features


def by_loops(task: FewShotTask, queries: np.ndarray, alpha: float) -> np.ndarray:
    """Return the logits of queries as the paper's formulas say, with the priors and without centring."""
    rows = [feature / np.linalg.norm(feature) for view in task.augmented.image_features for feature in view]
    labels = np.tile(task.train.labels, len(task.augmented))
    dim, classes = len(rows[0]), task.classes
    means = [np.mean([row for row, label in zip(rows, labels, strict=True) if label == one], axis=0)
             for one in range(classes)]  # fmt: skip
    covariance = np.cov(np.array([row - means[label] for row, label in zip(rows, labels, strict=True)]).T)
    precision = dim * np.linalg.pinv((len(rows) - 1) * covariance + np.trace(covariance) * np.eye(dim))
    logits = np.empty((len(queries), classes))
    for image, query in enumerate(queries):
        direction = query / np.linalg.norm(query)
        for one, mean in enumerate(means):
            discriminant = direction @ precision @ mean - np.log(classes) - mean @ precision @ mean / 2
            logits[image, one] = task.logit_scale * direction @ task.text.ensemble[one] + alpha * discriminant
    return logits


def centred(logits: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return the logits without their mean over the classes, which no probability depends on."""
    array = np.asarray(logits)
    difference: np.ndarray = array - array.mean(axis=1, keepdims=True)
    return difference


@pytest.mark.parametrize("views", [0, 2])
def test_it_agrees_with_a_pseudo_inverse(views: int) -> None:
    task = random_task(views=views)
    assert task.val is not None
    adapted = fit(task, METHOD.options)
    ranks = []
    for alpha in METHOD.options.alphas:
        logits = torch.from_numpy(by_loops(task, task.val.image_features, alpha))
        labels = torch.from_numpy(task.val.labels)
        accuracy = 100 * (logits.argmax(dim=1) == labels).double().mean().item()
        ranks.append((accuracy, -torch.nn.functional.cross_entropy(logits, labels).item(), alpha))
    assert [trial.rank for trial in adapted.trials] == [pytest.approx(rank[:2]) for rank in ranks]
    best = max(ranks)[2]
    assert adapted.chosen == {"alpha": best}
    logits = adapted.head.logits(torch.from_numpy(QUERIES))
    assert np.allclose(centred(logits), centred(by_loops(task, QUERIES, best)), atol=1e-8)


def test_two_classes_on_a_line_by_hand() -> None:
    """Each row is sqrt(1/2) from its mean, so the scatter is 2 and t is 2/3. The boundary is midway."""
    rows = torch.tensor([[0.5], [1.5], [3.5], [4.5]], dtype=torch.float64) * 2**0.5
    weights, bias = discriminants(rows, torch.tensor([0, 0, 1, 1]), 2)
    precision = 1 / (2 + 2 / 3)
    assert weights[:, 0].tolist() == pytest.approx([-1.5 * 2**0.5 * precision, 1.5 * 2**0.5 * precision])
    assert (-(bias[1] - bias[0]) / (weights[1] - weights[0])).item() == pytest.approx(2.5 * 2**0.5)


@pytest.mark.parametrize(
    ("shots", "views", "alpha"),
    [(1, 0, 0.01), (1, 1, 0.01), (1, 2, 0.001), (2, 2, 0.01), (4, 2, 0.1), (8, 0, 1), (16, 0, 1)],
)
def test_without_val_alpha_depends_on_the_shots(shots: int, views: int, alpha: float) -> None:
    task = random_task(shots=shots, views=views, val_per_class=0)
    adapted = fit(task, METHOD.options)
    assert adapted.chosen == {"alpha": alpha}
    assert adapted.trials == ()
    if shots > 1 or views > 1:
        logits = adapted.head.logits(torch.from_numpy(QUERIES))
        assert np.allclose(centred(logits), centred(by_loops(task, QUERIES, alpha)), atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("copies", [1, 3])
def test_without_scatter_the_nearest_class_mean_decides(copies: int, dtype: type) -> None:
    """Copies of a view differ from their mean by rounding only."""
    task = random_task(shots=1, views=0, dtype=dtype)
    repeated = Views(np.repeat(task.train.image_features[None], copies, axis=0))
    head = fit(replace(task, views=repeated, logit_scale=1e-9), GdaOptions(alphas=(1.0,))).head
    directions, means = (
        array / np.linalg.norm(array, axis=1)[:, None] for array in (QUERIES, repeated.image_features[0])
    )
    nearest = ((directions[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    logits = head.logits(torch.from_numpy(QUERIES.astype(dtype)))
    assert logits.argmax(dim=1).tolist() == nearest.tolist()
    spread = ((means - means.mean(axis=0)) ** 2).sum() * copies
    precision = 12 / (spread / 12 + spread / (4 * copies - 1))
    assert np.allclose(centred(logits), centred(precision * directions @ means.T), atol=1e-3)


def test_a_class_without_images_gets_the_mean_discriminant() -> None:
    task = without_images_of(random_task(), label=1)
    weights, bias = discriminants(
        torch.from_numpy(task.train.image_features), torch.from_numpy(task.train.labels), task.classes
    )
    others = [0, 2, 3]
    assert torch.equal(weights[1], torch.zeros(12, dtype=torch.float64))
    assert weights[others].mean(dim=0).abs().max() < 1e-12
    assert bias[1] == 0
    assert abs(bias[others].mean().item()) < 1e-12


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(classes=2, shots=1, templates=1, views=0, dtype=np.float32),
        random_task(dim=7, dtype=np.float32),
        without_images_of(random_task(), label=1),
        without_images_of(random_task(), label=2, keep=1),
        without_images_of(random_task(classes=2, shots=1, views=0), label=0),
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
        fit(replace(task, train=Images(features, task.train.labels)), METHOD.options)
