"""LP++ against autograd with torch.optim, and its start and rates by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.heads.kinds import LinearHead
from taskres_cache.methods.few_shot import FewShotTask, Images
from taskres_cache.methods.linear.lp_plus_plus import METHOD, LpPlusPlusOptions, fit
from tests.methods.tasks import random_task, without_images_of

OPTIONS = LpPlusPlusOptions(epochs=45)


def by_autograd(task: FewShotTask, epochs: int, accumulated: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Return weights (C, D), bias (C,) and the kept epoch of LP++, written as the authors' training loop."""
    unit = torch.nn.functional.normalize
    features, labels = (
        unit(torch.from_numpy(task.augmented.image_features[0]), dim=1),
        torch.from_numpy(task.train.labels),
    )
    text = torch.from_numpy(np.stack([
        unit(unit(torch.from_numpy(task.text.features[task.text.labels == label]), dim=1).mean(dim=0), dim=0).numpy()
        for label in range(task.classes)
    ]))  # fmt: skip
    cosines = features @ text.T
    of_class = [np.flatnonzero(task.train.labels == label) for label in range(task.classes)]
    bound = 1 / np.sqrt(features.shape[1])
    weights = torch.stack([features[rows].sum(dim=0) for rows in of_class]).requires_grad_()
    bias = torch.from_numpy(np.random.default_rng(task.seed).uniform(-bound, bound, task.classes)).requires_grad_()
    start = 250 * np.mean([float(cosines[rows, label].mean()) for label, rows in enumerate(of_class) if len(rows)])
    alphas = torch.full((task.classes,), start, dtype=torch.float64, requires_grad=True)
    eigenvalue = torch.linalg.eigvalsh(features.T @ features).max().item()
    optimiser = torch.optim.SGD([weights, bias], lr=4 * len(labels) / eigenvalue, momentum=0.9)
    alpha_rate = len(labels) / (4 * max(float((cosines[:, label] ** 2).sum()) for label in range(task.classes)))
    kept, best = None, -1.0
    for epoch in range(1, epochs + 1):
        optimiser.zero_grad()
        if not accumulated:
            alphas.grad = None
        logits = features @ weights.T + bias + features @ (alphas[:, None] * text).T
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimiser.step()
        if epoch % 10 == 0:
            with torch.no_grad():
                alphas -= alpha_rate * alphas.grad
        folded = (weights + alphas[:, None] * text).detach().clone()
        accuracy = 0.0
        if task.val is not None:
            logits = unit(torch.from_numpy(task.val.image_features), dim=1) @ folded.T + bias.detach()
            accuracy = float((logits.argmax(dim=1).numpy() == task.val.labels).mean())
        if accuracy >= best:
            best, kept = accuracy, (folded.numpy(), bias.detach().clone().numpy(), epoch)
    assert kept is not None
    return kept


@pytest.mark.parametrize("accumulated", [True, False])
@pytest.mark.parametrize("val_per_class", [0, 2])
@pytest.mark.parametrize("views", [0, 2])
def test_it_agrees_with_autograd(accumulated: bool, val_per_class: int, views: int) -> None:
    task = random_task(views=views, val_per_class=val_per_class)
    adapted = fit(task, replace(OPTIONS, alpha_gradient="accumulated" if accumulated else "fresh"))
    weights, bias, epoch = by_autograd(task, OPTIONS.epochs, accumulated)
    assert adapted.chosen["epoch"] == epoch
    assert np.allclose(adapted.head.tensors()["weights"], weights, rtol=1e-6, atol=1e-6)
    assert np.allclose(adapted.head.tensors()["bias"], bias, rtol=1e-6, atol=1e-6)


def test_the_two_gradients_of_alpha_differ() -> None:
    task = random_task()
    first, second = (
        fit(task, replace(OPTIONS, alpha_gradient=kind)).head.tensors()["weights"] for kind in ("accumulated", "fresh")
    )
    assert not np.allclose(first, second, atol=1e-3)


def test_the_last_of_equally_good_epochs_is_kept() -> None:
    task = random_task(val_per_class=0)
    assert fit(task, OPTIONS).chosen["epoch"] == OPTIONS.epochs


def test_empty_validation_images_are_none() -> None:
    task = random_task(val_per_class=0)
    empty = Images(np.empty((0, 12)), np.empty(0, np.int64))
    assert fit(replace(task, val=empty), OPTIONS).chosen == fit(task, OPTIONS).chosen


@pytest.mark.parametrize(
    "task",
    [
        random_task(shots=1, views=0, val_per_class=0, templates=1),
        random_task(classes=2, shots=1),
        without_images_of(random_task(), label=1),
        without_images_of(random_task(), label=1, keep=1),
        random_task(dtype=np.float32),
    ],
    ids=["one shot, no val", "two classes", "a class without images", "a class with one image", "float32"],
)
def test_odd_tasks_give_a_finite_head(task: FewShotTask) -> None:
    before = task.train.image_features.copy()
    adapted = fit(task, METHOD.options)
    assert isinstance(adapted.head, LinearHead)
    assert adapted.head.classes == task.classes
    assert all(np.isfinite(one).all() for one in adapted.head.tensors().values())
    assert adapted.head.tensors()["weights"].dtype == task.train.image_features.dtype
    assert (task.train.image_features == before).all()
    again = fit(task, METHOD.options)
    assert (again.head.tensors()["weights"] == adapted.head.tensors()["weights"]).all()
