"""Tip-Adapter-F against autograd and torch.optim, and on small and incomplete training sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask, Images
from taskres_cache.methods.memory.tip_adapter_f import METHOD, TipAdapterFOptions, fit
from tests.methods.tasks import random_task, without_images_of

OPTIONS = TipAdapterFOptions(epochs=5, batch=5, learning_rate=0.01, points=4)


def logits_of(task: FewShotTask, images: Tensor, keys: Tensor, alpha: float, beta: float) -> Tensor:
    directions = normalize(images)
    values = one_hot(torch.from_numpy(task.train.labels), task.classes).double()
    zero_shot = task.logit_scale * directions @ torch.from_numpy(task.text.ensemble).T
    return zero_shot + alpha * ((-beta) * (1 - directions @ keys.T)).exp() @ values


def by_autograd(task: FewShotTask, alpha: float, options: TipAdapterFOptions) -> tuple[Tensor, list[float]]:
    """Return the trained keys and the mean loss of each epoch."""
    views, labels = torch.from_numpy(task.augmented.image_features), torch.from_numpy(task.train.labels)
    keys = torch.nn.Parameter(normalize(views.mean(dim=0)))
    optimiser = torch.optim.AdamW([keys], lr=options.learning_rate, eps=1e-4)
    batches = -(-len(labels) // options.batch)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs * batches)
    rng = np.random.default_rng(task.seed)
    losses = []
    for epoch in range(options.epochs):
        order = rng.permutation(len(labels))
        of_images = np.zeros(len(labels))
        for begin in range(0, len(labels), options.batch):
            rows = order[begin : begin + options.batch]
            logits = logits_of(task, views[epoch % len(views)][rows], keys, alpha, options.beta)
            each = cross_entropy(logits, labels[rows], reduction="none")
            of_images[rows] = each.detach()
            optimiser.zero_grad()
            each.mean().backward()
            optimiser.step()
            cosine.step()
        losses.append(float(of_images.mean()))
    return keys.detach(), losses


@pytest.mark.parametrize(("views", "beta"), [(0, 1.0), (3, 1.0), (2, 2.5)])
def test_it_agrees_with_autograd(views: int, beta: float) -> None:
    task = random_task(views=views, val_per_class=0)
    options = replace(OPTIONS, beta=beta)
    adapted = fit(task, options)
    keys, losses = by_autograd(task, 2.0, options)
    assert adapted.chosen == {"alpha": 2.0, "beta": beta}
    assert np.allclose(adapted.head.tensors()["keys"], keys, atol=1e-8)
    assert adapted.losses == pytest.approx(losses)
    assert losses[-1] < losses[0]
    queries = torch.from_numpy(random_task(seed=2).train.image_features)
    assert torch.allclose(adapted.head.logits(queries), logits_of(task, queries, keys, 2.0, beta), atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_alphas_and_beta_are_chosen_by_val(seed: int) -> None:
    task = random_task(seed=seed, val_per_class=6)
    assert task.val is not None
    images, labels = torch.from_numpy(task.val.image_features), torch.from_numpy(task.val.labels)
    start = normalize(torch.from_numpy(task.augmented.image_features).mean(dim=0))

    def rank(keys: Tensor, alpha: float, beta: float) -> tuple[float, float]:
        logits = logits_of(task, images, keys, alpha, beta)
        return (logits.argmax(dim=1) == labels).double().mean().item(), -cross_entropy(logits, labels).item()

    training_alpha = max(OPTIONS.alphas, key=lambda alpha: rank(start, alpha, 1.0))
    keys, _ = by_autograd(task, training_alpha, OPTIONS)
    values = np.geomspace(0.1, 50, 4)
    alpha, beta = max(((alpha, beta) for alpha in values for beta in values), key=lambda pair: rank(keys, *pair))
    adapted = fit(task, OPTIONS)
    assert adapted.chosen == pytest.approx({"alpha": alpha, "beta": beta, "training_alpha": training_alpha})
    assert len(adapted.trials) == 16
    queries = torch.from_numpy(random_task(seed=9).train.image_features)
    assert torch.allclose(adapted.head.logits(queries), logits_of(task, queries, keys, alpha, beta), atol=1e-5)


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
    before = task.augmented.image_features.copy()
    adapted = fit(task, METHOD.options)
    tensors = adapted.head.tensors()
    assert adapted.head.logits(torch.from_numpy(before[0])).isfinite().all()
    assert all(tensor.dtype == before.dtype for tensor in tensors.values())
    assert len(adapted.losses) == 20
    assert np.array_equal(task.augmented.image_features, before)
    assert np.array_equal(fit(task, METHOD.options).head.tensors()["keys"], tensors["keys"])


def test_a_diverged_fit_is_an_error() -> None:
    with pytest.raises(FitError, match="lower"):
        fit(random_task(), replace(OPTIONS, learning_rate=1e200, weight_decay=1e200))


def test_features_that_are_not_finite_are_an_error() -> None:
    task = random_task(views=0)
    features = task.train.image_features.copy()
    features[0, 0] = np.nan
    with pytest.raises(FitError, match="finite"):
        fit(replace(task, train=Images(features, task.train.labels)), OPTIONS)
