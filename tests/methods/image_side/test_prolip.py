"""ProLIP against autograd, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.errors import OptionError
from taskres_cache.methods.few_shot import ImageProjection
from taskres_cache.methods.image_side.prolip import METHOD, ProlipOptions, fit
from tests.methods.image_side.by_autograd import tuned
from tests.methods.tasks import random_task, without_images_of

OPTIONS = ProlipOptions(learning_rate=3e-3, penalty=0.5, steps=25)


@pytest.mark.parametrize("views", [0, 3])
def test_it_agrees_with_autograd(views: int) -> None:
    task = random_task(views=views, pre_projection_width=20)
    assert task.projection is not None
    assert task.projection.bias is not None
    adapted = fit(task, OPTIONS)
    inputs, bias = task.augmented.pre_projection, torch.from_numpy(task.projection.bias)
    assert inputs is not None
    start = torch.from_numpy(task.projection.weights)
    matrix, losses = tuned(
        task, start, lambda x, matrix: x @ matrix + bias, torch.from_numpy(inputs), 3e-3, 0.5 / 3, 25
    )
    assert np.allclose(adapted.head.tensors()["projection"], matrix, atol=1e-9)
    assert np.array_equal(adapted.head.tensors()["bias"], bias)
    assert adapted.losses == pytest.approx(losses)
    assert adapted.head.input == "pre_projection"


def test_without_a_bias() -> None:
    task = random_task(pre_projection_width=20, views=0)
    assert task.projection is not None
    assert task.projection.bias is not None
    assert task.train.pre_projection is not None
    features = task.train.image_features - task.projection.bias
    unbiased = replace(
        task,
        train=replace(task.train, image_features=features),
        projection=ImageProjection(task.projection.weights),
    )
    head = fit(unbiased, replace(OPTIONS, learning_rate=0.0)).head
    cosines = torch.nn.functional.normalize(torch.from_numpy(features)) @ torch.from_numpy(task.text.ensemble).T
    assert torch.allclose(head.logits(torch.from_numpy(task.train.pre_projection)), 20 * cosines)


def test_a_class_without_images() -> None:
    task = without_images_of(random_task(pre_projection_width=9, dtype=np.float32), label=0)
    head = fit(task, METHOD.options).head
    assert head.logits(torch.from_numpy(np.ones((2, 9), np.float32))).isfinite().all()


def test_it_needs_features_before_the_projection() -> None:
    with pytest.raises(OptionError, match="before the tower's last projection"):
        fit(random_task(), OPTIONS)
