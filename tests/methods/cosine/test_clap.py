"""CLAP against autograd, and its penalties against loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.methods.cosine import zs_lp
from taskres_cache.methods.cosine.clap import METHOD, fit, penalties_of
from taskres_cache.methods.cosine.pool_training import Pool, PoolOptions
from taskres_cache.methods.few_shot import FewShotTask, Text
from tests.methods.cosine.sgd_by_autograd import trained
from tests.methods.tasks import random_task, without_images_of

OPTIONS = PoolOptions(lr=0.05, epochs=20)


def by_loops(task: FewShotTask) -> list[float]:
    """Return the penalties, NaN for a class without images."""
    sums, counts = np.zeros(task.classes), np.zeros(task.classes)
    for view in task.augmented.image_features:
        for feature, label in zip(view, task.train.labels, strict=True):
            cosines = [feature @ one / np.linalg.norm(feature) / np.linalg.norm(one) for one in task.text.base]
            exponentials = np.exp(task.logit_scale * np.array(cosines))
            sums[label] += exponentials[label] / exponentials.sum()
            counts[label] += 1
    return [float(total / count) if count else float("nan") for total, count in zip(sums, counts, strict=True)]


@pytest.mark.parametrize("views", [0, 3])
@pytest.mark.parametrize("batch_size", [4, 256])
def test_it_agrees_with_autograd(views: int, batch_size: int) -> None:
    task = random_task(views=views)
    adapted = fit(task, replace(OPTIONS, batch_size=batch_size))
    weights, losses = trained(task, 0.05, 20, batch_size, by_loops(task))
    assert np.allclose(adapted.head.tensors()["weights"], weights, atol=1e-9)
    assert adapted.losses == pytest.approx(losses)
    free = zs_lp.fit(task, replace(OPTIONS, batch_size=batch_size)).head.tensors()["weights"]
    assert np.square(weights.numpy() - task.text.base).sum() < np.square(free - task.text.base).sum()


def test_penalties_by_hand() -> None:
    """The image of class 0 has the direction of its text; that of class 1 is as near to both texts."""
    task = random_task(classes=2, shots=1, dim=2, views=0, templates=1)
    task = replace(
        task,
        train=replace(task.train, image_features=np.array([[3.0, 0.0], [1.0, 1.0]])),
        text=Text(np.array([[2.0, 0.0], [0.0, 0.1]]), np.array([0, 1])),
        logit_scale=1.0,
    )
    assert penalties_of(task, Pool.of(task)).tolist() == pytest.approx([np.e / (np.e + 1), 0.5])


def test_a_class_without_images_has_the_mean_penalty() -> None:
    task = without_images_of(random_task(), label=1)
    others = by_loops(task)
    expected = [float(np.nanmean(others)) if np.isnan(one) else one for one in others]
    assert penalties_of(task, Pool.of(task)).tolist() == pytest.approx(expected)
    weights, _ = trained(task, 0.05, 20, 256, expected)
    assert np.allclose(fit(task, OPTIONS).head.tensors()["weights"], weights, atol=1e-9)


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(dim=7, dtype=np.float32),
        without_images_of(random_task(), label=2, keep=1),
    ],
)
def test_small_and_incomplete_training_sets(task: FewShotTask) -> None:
    before = task.train.image_features.copy()
    head = fit(task, METHOD.options).head
    assert head.logits(torch.from_numpy(before)).isfinite().all()
    assert head.tensors()["weights"].dtype == before.dtype
