"""SS-Text against loops, and by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError
from taskres_cache.methods.cosine.ss_text import METHOD, SsTextOptions, fit
from taskres_cache.methods.few_shot import FewShotTask, Images, Text
from tests.methods.tasks import random_task, without_images_of


def by_loops(task: FewShotTask, least: float) -> np.ndarray:
    """Return the weights (C, D) as the formulas say."""
    weights = task.text.ensemble.copy()
    for label in range(task.classes):
        images = task.train.image_features[task.train.labels == label]
        if len(images):
            penalty = max(1 / len(images), least)
            for image in images:
                weights[label] += task.logit_scale * image / np.linalg.norm(image) / (len(task.train) * penalty)
    return weights


@pytest.mark.parametrize("task", [random_task(), without_images_of(random_task(), label=1, keep=1)])
@pytest.mark.parametrize("least", [1e-3, 0.5])
def test_it_agrees_with_loops(task: FewShotTask, least: float) -> None:
    adapted = fit(task, SsTextOptions(least))
    assert np.allclose(adapted.head.tensors()["weights"], by_loops(task, least), atol=1e-12)
    assert adapted.head.settings() == {"logit_scale": 20.0}


def test_by_hand() -> None:
    """Two images of class 0 and one of class 1: 6 / (3 / 2) = 4 and 6 / 3 = 2 times their sums."""
    train = Images(np.array([[5.0, 0.0], [0.0, 2.0], [0.6, 0.8]]), np.array([0, 0, 1]))
    task = replace(random_task(), train=train, text=Text(np.array([[3.0, 4.0], [0.0, 7.0]]), np.arange(2)))
    weights = fit(replace(task, logit_scale=6.0, views=None), METHOD.options).head.tensors()["weights"]
    assert weights.tolist() == [pytest.approx([0.6 + 4, 0.8 + 4]), pytest.approx([2 * 0.6, 1 + 2 * 0.8])]


def test_a_class_without_images_keeps_its_text() -> None:
    task = without_images_of(random_task(), label=1)
    assert np.array_equal(fit(task, METHOD.options).head.tensors()["weights"][1], task.text.ensemble[1])


def test_single_precision_and_one_image_per_class() -> None:
    task = random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0, dtype=np.float32)
    head = fit(task, METHOD.options).head
    assert head.tensors()["weights"].dtype == np.float32
    assert head.logits(torch.from_numpy(task.train.image_features)).isfinite().all()


def test_features_that_are_not_finite_are_an_error() -> None:
    task = random_task(views=0)
    features = task.train.image_features.copy()
    features[0, 0] = np.nan
    with pytest.raises(FitError, match="finite"):
        fit(replace(task, train=Images(features, task.train.labels)), METHOD.options)
