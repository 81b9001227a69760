"""CLIP-Adapter against torch modules and autograd, and on small and incomplete training sets."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask, Images
from taskres_cache.methods.image_side.clip_adapter import METHOD, ClipAdapterOptions, fit
from tests.methods.tasks import random_task, without_images_of

OPTIONS = ClipAdapterOptions(steps=25, batch=5, learning_rate=0.05, ratio=0.4)


class Adapter(nn.Module):
    """The authors' network, on raw features."""

    def __init__(self, dim: int, hidden: int, ratio: float, seed: int) -> None:
        super().__init__()
        first, second = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU()).double()
        rng = np.random.default_rng(seed)
        for layer in (first, second):
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.data = torch.from_numpy(rng.uniform(-bound, bound, tuple(layer.weight.shape)))
        self.ratio = ratio

    def forward(self, images: Tensor, text: Tensor, scale: float) -> Tensor:
        mixed = self.ratio * self.layers(images) + (1 - self.ratio) * images
        return scale * (mixed / mixed.norm(dim=1, keepdim=True)) @ text.T


def by_autograd(task: FewShotTask, options: ClipAdapterOptions) -> tuple[Adapter, list[float]]:
    views, labels = torch.from_numpy(task.augmented.image_features), torch.from_numpy(task.train.labels)
    text = torch.from_numpy(task.text.ensemble)
    network = Adapter(views.shape[2], views.shape[2] // options.reduction, options.ratio, task.seed)
    sgd = torch.optim.SGD(network.parameters(), options.learning_rate, 0.9, weight_decay=options.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, options.steps)
    rng, losses, epoch = np.random.default_rng([task.seed, 1]), [], 0
    while len(losses) < options.steps:
        order = rng.permutation(len(labels))
        for begin in range(0, len(labels), options.batch):
            if len(losses) == options.steps:
                break
            rows = order[begin : begin + options.batch]
            logits = network(views[epoch % len(views)][rows], text, task.logit_scale)
            loss = nn.functional.cross_entropy(logits, labels[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            cosine.step()
            losses.append(loss.item())
        epoch += 1
    return network, losses


@pytest.mark.parametrize(("views", "batch"), [(0, 5), (3, 5), (2, 256)])
def test_it_agrees_with_autograd(views: int, batch: int) -> None:
    task = random_task(views=views)
    options = replace(OPTIONS, batch=batch)
    adapted = fit(task, options)
    network, losses = by_autograd(task, options)
    tensors = adapted.head.tensors()
    assert np.allclose(tensors["down"], network.layers[0].weight.detach(), atol=1e-9)
    assert np.allclose(tensors["up"], network.layers[2].weight.detach(), atol=1e-9)
    assert adapted.losses == pytest.approx(losses)
    if batch == 256:
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
    queries = torch.from_numpy(random_task(seed=2).train.image_features)
    expected = network(queries, torch.from_numpy(task.text.ensemble), task.logit_scale)
    assert torch.allclose(adapted.head.logits(queries), expected, atol=1e-7)


def test_the_length_of_features_changes_nothing() -> None:
    task = random_task(views=0)
    longer = Images(7 * task.train.image_features, task.train.labels)
    up = [fit(one, OPTIONS).head.tensors()["up"] for one in (task, replace(task, train=longer))]
    assert np.allclose(*up)


def test_with_ratio_0_it_is_zero_shot() -> None:
    task = random_task()
    head = fit(task, replace(OPTIONS, ratio=0.0)).head
    images = torch.from_numpy(task.train.image_features)
    cosines = nn.functional.normalize(images) @ torch.from_numpy(task.text.ensemble).T
    assert torch.allclose(head.logits(images), 20 * cosines)


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(dim=7, dtype=np.float32),
        random_task(dim=2, dtype=np.float32),
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
    assert np.array_equal(task.augmented.image_features, before)
    assert np.array_equal(fit(task, METHOD.options).head.tensors()["up"], tensors["up"])


def test_a_diverged_fit_is_an_error() -> None:
    with pytest.raises(FitError, match="lower"):
        fit(random_task(), replace(OPTIONS, learning_rate=1e200, weight_decay=1e200))


def test_features_that_are_not_finite_are_an_error() -> None:
    task = random_task(views=0)
    features = task.train.image_features.copy()
    features[0, 0] = np.nan
    with pytest.raises(FitError, match="finite"):
        fit(replace(task, train=Images(features, task.train.labels)), OPTIONS)
