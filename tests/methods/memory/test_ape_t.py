"""APE-T against autograd and loops, its selection of channels and its choices."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask, Images, unit
from taskres_cache.methods.memory.ape_t import METHOD, ApeTOptions, fit, most_telling_channels
from tests.methods.tasks import random_task, without_images_of

OPTIONS = ApeTOptions(epochs=6, batch_size=5, learning_rate=1e-2, channels=0.75, alpha=1.5, beta=2.0)


def channels_by_loops(task: FewShotTask, count: int) -> list[int]:
    """Return the selected channels, from the product of every pair of samples of different classes."""
    text, keys = task.text.ensemble, unit(task.augmented.image_features.mean(axis=0))
    samples = [[text[one], *keys[task.train.labels == one]] for one in range(task.classes)]
    pairs = [
        left * right
        for one in range(task.classes)
        for other in range(task.classes)
        if one != other
        for left in samples[one]
        for right in samples[other]
    ]
    criterion = 0.8 * torch.from_numpy(text).var(dim=0).numpy() - 0.2 * np.mean(pairs, axis=0)
    return sorted(np.argsort(criterion)[::-1][:count].tolist())


class ByAutograd:
    """The parameters after each epoch, with changed keys that are built in full."""

    def __init__(self, task: FewShotTask, options: ApeTOptions) -> None:
        self.text = torch.from_numpy(task.text.ensemble)
        self.keys = torch.from_numpy(unit(task.augmented.image_features.mean(axis=0)))
        self.labels = torch.from_numpy(task.train.labels)
        self.channels = channels_by_loops(task, 9)
        self.scale = task.logit_scale
        self.res = torch.nn.Parameter(torch.zeros(task.classes, 9, dtype=torch.float64))
        self.weights = torch.nn.Parameter(torch.ones(len(self.keys), 1, dtype=torch.float64))
        self.epochs: list[tuple[Tensor, Tensor]] = []
        views = torch.from_numpy(unit(task.augmented.image_features))
        adamw = torch.optim.AdamW([self.res, self.weights], lr=1e-2, eps=1e-3, weight_decay=0.1)
        batches = -(-len(self.keys) // options.batch_size)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, options.epochs * batches)
        rng = np.random.default_rng(task.seed)
        for epoch in range(options.epochs):
            order = rng.permutation(len(self.keys))
            for start in range(0, len(order), options.batch_size):
                rows = order[start : start + options.batch_size]
                logits = self.logits(views[epoch % len(views)][rows], options.alpha, options.beta)
                adamw.zero_grad()
                torch.nn.functional.cross_entropy(logits, self.labels[rows]).backward()
                adamw.step()
                cosine.step()
            self.epochs.append((self.res.detach().clone(), self.weights.detach().clone()))

    def logits(self, directions: Tensor, alpha: float, beta: float) -> Tensor:
        text, keys = self.text.clone(), self.keys.clone()
        text[:, self.channels] = text[:, self.channels] + self.res
        keys[:, self.channels] = keys[:, self.channels] + self.res[self.labels]
        values = torch.eye(len(text), dtype=torch.float64)[self.labels] * self.weights
        return self.scale * directions @ text.T + alpha * torch.exp(-beta * (1 - directions @ keys.T)) @ values

    def after(self, epoch: int) -> "ByAutograd":
        self.res, self.weights = (torch.nn.Parameter(one) for one in self.epochs[epoch - 1])
        return self


def rank(logits: Tensor, labels: np.ndarray) -> tuple[float, float]:
    targets = torch.from_numpy(labels)
    accuracy = 100 * (logits.argmax(dim=1) == targets).double().mean().item()
    return accuracy, -torch.nn.functional.cross_entropy(logits, targets).item()


@pytest.mark.parametrize("views", [0, 2])
def test_it_agrees_with_autograd(views: int) -> None:
    task = random_task(views=views, val_per_class=0)
    adapted = fit(task, OPTIONS)
    second = ByAutograd(task, OPTIONS)
    queries = torch.from_numpy(random_task(seed=2).train.image_features)
    expected = second.logits(torch.nn.functional.normalize(queries), 1.5, 2.0)
    assert torch.allclose(adapted.head.logits(queries), expected, atol=1e-8)
    assert adapted.losses[-1] < adapted.losses[0]


def test_epoch_then_alpha_and_beta_are_chosen_by_val() -> None:
    task = random_task(val_per_class=5)
    assert task.val is not None
    adapted = fit(task, replace(OPTIONS, points=4))
    second = ByAutograd(task, OPTIONS)
    images, labels = torch.from_numpy(unit(task.val.image_features)), task.val.labels
    of_epochs = [rank(second.after(epoch).logits(images, 1.5, 2.0), labels) for epoch in range(1, 7)]
    epoch = 1 + of_epochs.index(max(of_epochs))
    assert adapted.chosen["epoch"] == epoch
    grid = [(1.5, 2.0), *((alpha, beta) for beta in np.arange(4) * 1.725 + 0.1 for alpha in np.arange(4) * 1.725 + 0.1)]
    ranks = [rank(second.after(epoch).logits(images, *pair), labels) for pair in grid]
    assert [trial.rank for trial in adapted.trials] == [pytest.approx(one) for one in sorted(ranks, reverse=True)]
    best = grid[ranks.index(max(ranks))]
    assert (adapted.chosen["alpha"], adapted.chosen["beta"]) == pytest.approx(best)
    assert torch.allclose(adapted.head.logits(images), second.logits(images, *best), atol=1e-8)


def test_channels_are_those_found_by_loops() -> None:
    task = random_task()
    keys = unit(task.augmented.image_features.mean(axis=0))
    for count in (1, 5, 12):
        chosen = most_telling_channels(task.text.ensemble, keys, task.train.labels, count, 0.8, 0.2)
        assert chosen.tolist() == channels_by_loops(task, count)


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(dim=7, dtype=np.float32),
        random_task(classes=2, shots=1, dtype=np.float32),
        without_images_of(random_task(), label=1),
        without_images_of(random_task(), label=2, keep=1),
    ],
)
def test_small_and_incomplete_training_sets(task: FewShotTask) -> None:
    before = task.train.image_features.copy()
    head = fit(task, METHOD.options).head
    assert head.logits(torch.from_numpy(before)).isfinite().all()
    assert all(tensor.dtype == before.dtype for tensor in head.tensors().values())
    assert np.array_equal(task.train.image_features, before)


def test_a_diverged_fit_is_an_error() -> None:
    task = random_task(views=0)
    features = task.train.image_features.copy()
    features[0, 0] = np.nan
    with pytest.raises(FitError, match="diverged"):
        fit(replace(task, train=Images(features, task.train.labels)), OPTIONS)
