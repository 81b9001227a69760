"""RLA against autograd, and on small and incomplete training sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.image_side.rla import METHOD, RlaOptions, fit
from tests.methods.image_side.by_autograd import tuned
from tests.methods.tasks import random_task, without_images_of

OPTIONS = RlaOptions(learning_rate=3e-3, penalty=0.5, steps=25)


@pytest.mark.parametrize("views", [0, 3])
def test_it_agrees_with_autograd(views: int) -> None:
    task = random_task(views=views)
    adapted = fit(task, OPTIONS)
    inputs = torch.from_numpy(task.augmented.image_features)
    eye = torch.eye(12, dtype=torch.float64)
    matrix, losses = tuned(task, eye, lambda x, matrix: x @ matrix, inputs, 3e-3, 0.5 / 3, 25)
    assert np.allclose(adapted.head.tensors()["projection"], matrix, atol=1e-9)
    assert adapted.losses == pytest.approx(losses)
    assert losses[-1] < losses[0]
    assert adapted.chosen == {"lambda": pytest.approx(0.5 / 3)}


def test_without_steps_it_is_zero_shot() -> None:
    task = random_task()
    head = fit(task, replace(OPTIONS, learning_rate=0.0)).head
    images = torch.from_numpy(task.train.image_features)
    cosines = torch.nn.functional.normalize(images) @ torch.from_numpy(task.text.ensemble).T
    assert torch.allclose(head.logits(images), 20 * cosines)


def test_a_large_penalty_keeps_the_identity() -> None:
    distances = [
        np.abs(fit(random_task(), replace(OPTIONS, penalty=penalty)).head.tensors()["projection"] - np.eye(12)).max()
        for penalty in (0.0, 1.0, 1000.0)
    ]
    assert distances[0] > distances[1] > 5 * distances[2]


def test_fewer_images_per_step_use_every_image() -> None:
    task = random_task()
    some = fit(task, replace(OPTIONS, images_per_step=5))
    assert np.array_equal(
        some.head.tensors()["projection"],
        fit(task, replace(OPTIONS, images_per_step=5)).head.tensors()["projection"],
    )
    everything = fit(task, OPTIONS)
    assert np.mean(some.losses[-5:]) < some.losses[0]
    images = torch.from_numpy(task.train.image_features)
    assert (some.head.logits(images) - everything.head.logits(images)).abs().max() < 3
    assert np.array_equal(
        fit(task, replace(OPTIONS, images_per_step=12)).head.tensors()["projection"],
        everything.head.tensors()["projection"],
    )


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
    head = fit(task, METHOD.options).head
    assert head.logits(torch.from_numpy(task.train.image_features)).isfinite().all()
    assert head.tensors()["projection"].dtype == before.dtype
    assert np.array_equal(task.train.image_features, before)


def test_a_diverged_fit_is_an_error() -> None:
    with pytest.raises(FitError, match="lower"):
        fit(random_task(), replace(OPTIONS, learning_rate=1e200, penalty=1e200))
