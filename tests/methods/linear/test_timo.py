"""TIMO against loops over classes and prompts, its choice, and small training sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.methods.few_shot import FewShotTask, Text
from taskres_cache.methods.linear.timo import METHOD, TimoOptions, fit
from taskres_cache.methods.method import Adapted
from tests.methods.tasks import random_task, without_images_of

OPTIONS = TimoOptions(alphas=(0.1, 10.0, 1000.0), gammas=(50.0, 5.0))


def by_loops(task: FewShotTask, queries: np.ndarray, alpha: float, gamma: float) -> np.ndarray:
    """Return the logits of queries, without a common factor, centred over the classes."""
    samples, owners, texts = [], [], []
    for view in task.augmented.image_features:
        for feature, label in zip(view, task.train.labels, strict=True):
            samples.append(feature / np.linalg.norm(feature))
            owners.append(int(label))
    for label in range(task.classes):
        centre = np.mean([row for row, owner in zip(samples, owners, strict=True) if owner == label], axis=0)
        prompts = [row / np.linalg.norm(row) for row in task.text.features[task.text.labels == label]]
        match = np.array([prompt @ centre / np.linalg.norm(centre) for prompt in prompts])
        weights = np.exp(gamma * match / np.sqrt(sum(match**2)))
        text = sum(weight / weights.sum() * prompt for weight, prompt in zip(weights, prompts, strict=True))
        texts.append((text / np.linalg.norm(text), match, prompts))
    for label, (_, match, prompts) in enumerate(texts):
        samples += [one * prompt for one, prompt in zip(match, prompts, strict=True)]
        owners += [label] * len(prompts)
    rows, labels = np.array(samples), np.array(owners)
    means = np.array([rows[labels == one].mean(axis=0) for one in range(task.classes)])
    covariance = np.cov((rows - means[labels]).T)
    dim = rows.shape[1]
    precision = dim * np.linalg.pinv((len(rows) - 1) * covariance + np.trace(covariance) * np.eye(dim))
    bias = np.array([-np.log(task.classes) - mean @ precision @ mean / 2 for mean in means])
    directions = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    logits: np.ndarray = (
        alpha * directions @ np.array([text for text, _, _ in texts]).T + directions @ precision @ means.T + bias
    )
    return logits - logits.mean(axis=1, keepdims=True)


def centred(adapted: Adapted, queries: np.ndarray) -> np.ndarray:
    logits: np.ndarray = adapted.head.logits(torch.from_numpy(queries)).numpy()
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("views", [0, 2])
def test_it_agrees_with_loops(views: int) -> None:
    task = random_task(views=views, templates=3)
    assert task.val is not None
    adapted = fit(task, OPTIONS)
    labels = torch.from_numpy(task.val.labels)
    expected = []
    for alpha in OPTIONS.alphas:
        for gamma in OPTIONS.gammas:
            logits = torch.from_numpy(min(1.0, 20 / alpha) * by_loops(task, task.val.image_features, alpha, gamma))
            accuracy = 100 * (logits.argmax(dim=1) == labels).double().mean().item()
            loss = torch.nn.functional.cross_entropy(logits, labels).item()
            expected.append((accuracy, -loss, {"alpha": alpha, "gamma": gamma}))
    expected.sort(key=lambda one: one[:2], reverse=True)
    assert [trial.rank for trial in adapted.trials] == [pytest.approx(one[:2]) for one in expected]
    assert adapted.chosen == expected[0][2]
    queries = random_task(seed=2).train.image_features
    alpha, gamma = adapted.chosen["alpha"], adapted.chosen["gamma"]
    logits = min(1.0, 20 / alpha) * by_loops(task, queries, alpha, gamma)
    assert np.allclose(centred(adapted, queries), logits)


@pytest.mark.parametrize(("shots", "alpha"), [(1, 10_000.0), (2, 2000.0), (4, 200.0), (8, 20.0), (16, 20.0)])
def test_without_val_alpha_depends_on_shots(shots: int, alpha: float) -> None:
    task = random_task(shots=shots, val_per_class=0)
    adapted = fit(task, METHOD.options)
    assert adapted.chosen == {"alpha": alpha, "gamma": 50.0}
    queries = random_task(seed=2).train.image_features
    logits = min(1.0, 20 / alpha) * by_loops(task, queries, alpha, 50.0)
    assert np.allclose(centred(adapted, queries), logits)


def test_classes_with_different_numbers_of_prompts() -> None:
    task = random_task(templates=3)
    kept = np.array([0, 1, 2, 3, 6, 7, 9, 10, 11])
    fewer = replace(task, text=Text(task.text.features[kept], task.text.labels[kept]))
    adapted = fit(fewer, replace(OPTIONS, alphas=(10.0,), gammas=(5.0,)))
    queries = random_task(seed=2).train.image_features
    assert np.allclose(centred(adapted, queries), by_loops(fewer, queries, 10.0, 5.0))


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
