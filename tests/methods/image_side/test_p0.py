"""P0 against autograd in full coordinates, its choice, and small training sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.image_side.p0 import METHOD, P0Options, fit, text_basis
from tests.methods.image_side.by_autograd import tuned
from tests.methods.tasks import random_task, without_images_of

ONE = P0Options(learning_rates=(3e-3,), penalties=(), steps=25)


def full_coordinates(task: FewShotTask, lr: float, penalty: float) -> torch.Tensor:
    """Return `A Q'`, trained without the compact form of the logits."""
    basis = torch.from_numpy(text_basis(task.text.ensemble))
    features = torch.from_numpy(task.augmented.image_features)
    before = task.augmented.pre_projection
    inputs = features if before is None else torch.from_numpy(before)
    both = torch.cat([inputs, features], dim=2)
    width = inputs.shape[2]
    start = torch.zeros(width, basis.shape[1], dtype=torch.float64)
    matrix, _ = tuned(
        task, start, lambda x, matrix: x[:, width:] + x[:, :width] @ matrix @ basis.T, both, lr, penalty, 25
    )
    return matrix @ basis.T


@pytest.mark.parametrize("width", [0, 20])
def test_it_agrees_with_autograd(width: int) -> None:
    task = random_task(pre_projection_width=width, val_per_class=0)
    adapted = fit(task, ONE)
    start = np.eye(12) if task.projection is None else task.projection.weights
    moved = adapted.head.tensors()["projection"] - start
    assert np.allclose(moved, full_coordinates(task, 3e-3, 1 / 3), atol=1e-9)
    assert adapted.head.input == ("pre_projection" if width else "features")
    assert adapted.chosen == {"learning_rate": 3e-3, "lambda": pytest.approx(1 / 3)}


def test_each_combination_is_trained_and_the_best_on_val_is_kept() -> None:
    task = random_task()
    assert task.val is not None
    adapted = fit(task, P0Options(learning_rates=(3e-3, 1e-2), penalties=(0.0, 1.0), steps=25))
    tried = [(trial.settings["learning_rate"], trial.settings["lambda"]) for trial in adapted.trials]
    assert tried == [(3e-3, 1 / 3), (3e-3, 0.0), (3e-3, 1.0), (1e-2, 1 / 3)]
    ranks = []
    for lr, penalty in tried:
        projection = torch.eye(12, dtype=torch.float64) + full_coordinates(task, float(lr), float(penalty))
        head = replace(adapted.head, projection=projection)
        ranks.append(head.score(torch.from_numpy(task.val.image_features), torch.from_numpy(task.val.labels)))
    assert [trial.rank for trial in adapted.trials] == [pytest.approx(rank) for rank in ranks]
    assert adapted.chosen == adapted.trials[ranks.index(max(ranks))].settings


def test_the_basis_spans_the_differences_of_texts() -> None:
    texts = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert np.allclose(np.abs(text_basis(texts)), [[0.5**0.5], [0.5**0.5], [0.0]])
    assert text_basis(texts).max() == pytest.approx(0.5**0.5)
    many = random_task(classes=9, dim=5, views=0).text.ensemble
    assert np.allclose(text_basis(many) @ text_basis(many).T, np.eye(5))


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(dim=7, dtype=np.float32),
        random_task(classes=9, dim=5),
        without_images_of(random_task(), label=1),
        without_images_of(random_task(pre_projection_width=20), label=2, keep=1),
    ],
)
def test_small_and_incomplete_training_sets(task: FewShotTask) -> None:
    before = task.train.image_features.copy()
    head = fit(task, replace(METHOD.options, steps=40)).head
    inputs = before if task.train.pre_projection is None else task.train.pre_projection
    assert head.logits(torch.from_numpy(inputs)).isfinite().all()
    assert head.tensors()["projection"].dtype == before.dtype
    assert np.array_equal(task.train.image_features, before)


def test_a_diverged_combination_is_left_out() -> None:
    options = P0Options(learning_rates=(3e-3, float("inf")), penalties=(), steps=5)
    assert [trial.settings["learning_rate"] for trial in fit(random_task(), options).trials] == [3e-3]
    with pytest.raises(FitError, match="diverged"):
        fit(random_task(), replace(options, learning_rates=(float("inf"),)))
