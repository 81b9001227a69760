"""The cross-modal probe against autograd, torch.optim.AdamW and one fit at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask, Images
from taskres_cache.methods.linear.cross_modal import METHOD, CrossModalOptions, fit, iterations, rate
from taskres_cache.methods.method import Setting
from tests.methods.tasks import random_task, without_images_of

OPTIONS = CrossModalOptions(
    learning_rates=(1e-2, 2e-3),
    weight_decays=(0.0, 0.1),
    batch_sizes=(4, 6),
    passes=1,
    least_iterations=70,
    check_every=9,
)

Fit = tuple[dict[str, Setting], torch.Tensor, float, float]


def shuffled_batches(count: int, size: int, shuffler: torch.Generator, passes: int) -> list[torch.Tensor]:
    """Return the batches of passes over `count` rows; rows that do not fill a batch are dropped."""
    batches = []
    for _ in range(passes):
        order = torch.randperm(count, generator=shuffler)
        batches += [order[first : first + size] for first in range(0, count - size + 1, size)]
    return batches


def one_fit(task: FewShotTask, lr: float, decay: float, size: int, steps: int, check_every: int) -> Fit:
    """Return the best iteration of one fit: its settings, weights, val accuracy and loss."""
    images, labels = torch.from_numpy(task.train.image_features), torch.from_numpy(task.train.labels)
    prompts, classes = torch.from_numpy(task.text.features), torch.from_numpy(task.text.labels)
    assert task.val is not None
    val, val_labels = torch.from_numpy(task.val.image_features), torch.from_numpy(task.val.labels)
    shuffler = torch.Generator().manual_seed(task.seed)
    half = size // 2
    image_batches = shuffled_batches(len(images), half, shuffler, math.ceil(steps / (len(images) // half)))
    prompt_batches = shuffled_batches(len(prompts), half, shuffler, math.ceil(steps / (len(prompts) // half)))
    weights = torch.nn.Parameter(torch.from_numpy(task.text.ensemble).clone())
    optimiser = torch.optim.AdamW([weights], weight_decay=decay)
    best: Fit | None = None
    for step in range(steps):
        chosen, named = image_batches[step], prompt_batches[step]
        samples = torch.cat([images[chosen], prompts[named]])
        loss = cross_entropy(
            task.logit_scale * normalize(samples) @ weights.T, torch.cat([labels[chosen], classes[named]])
        )
        optimiser.zero_grad()
        loss.backward()
        warming = 1e-5 if step == 0 else lr * step / 50
        optimiser.param_groups[0]["lr"] = (
            warming if step < 50 else lr * (1 + math.cos(math.pi * (step - 50) / steps)) / 2
        )
        optimiser.step()
        if step % check_every == 0 or step == steps - 1:
            logits = (task.logit_scale * normalize(val) @ weights.T).detach()
            accuracy = 100 * (logits.argmax(dim=1) == val_labels).double().mean().item()
            val_loss = cross_entropy(logits, val_labels).item()
            if best is None or (accuracy, -val_loss) > (best[2], -best[3]):
                settings: dict[str, Setting] = {
                    "learning_rate": lr, "weight_decay": decay, "batch_size": size, "iteration": step,
                }  # fmt: skip
                best = settings, weights.detach().clone(), accuracy, val_loss
    assert best is not None
    return best


def test_it_agrees_with_single_fits_by_autograd() -> None:
    task = random_task(templates=3)
    adapted = fit(task, OPTIONS)
    expected = [
        one_fit(task, lr, decay, size, 70, 9)
        for size in OPTIONS.batch_sizes
        for lr in OPTIONS.learning_rates
        for decay in OPTIONS.weight_decays
    ]
    assert [trial.settings for trial in adapted.trials] == [one[0] for one in expected]
    assert [trial.rank for trial in adapted.trials] == [pytest.approx((one[2], -one[3]), rel=1e-6) for one in expected]
    best = max(expected, key=lambda one: (one[2], -one[3]))
    assert adapted.chosen == best[0]
    assert np.allclose(adapted.head.tensors()["weights"], 20 * best[1], atol=1e-6)
    assert not adapted.head.tensors()["bias"].any()
    assert adapted.head.settings() == {"features": "normalised"}
    assert len(adapted.losses) == math.ceil(70 / 9)
    assert adapted.losses[-1] < adapted.losses[0]


def test_the_schedule() -> None:
    assert [rate(step, 1.0, 100) for step in (0, 1, 49, 50, 100)] == pytest.approx([1e-5, 0.02, 0.98, 1.0, 0.5])
    assert iterations(100, CrossModalOptions()) == 1000
    assert iterations(1601, CrossModalOptions()) == 1001
    assert iterations(1_000_000, CrossModalOptions()) == 12_800


def test_without_val_the_last_iteration_of_one_fit_counts() -> None:
    task = random_task(templates=3)
    adapted = fit(replace(task, val=None), OPTIONS)
    assert adapted.chosen == {"learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 6, "iteration": 69}
    assert adapted.trials == ()
    weights = one_fit(task, 1e-3, 0.0, 6, 70, 69)[1]  # two looks, the second one at the last iteration
    last = fit(replace(task, val=None), OPTIONS).head.tensors()["weights"]
    assert np.array_equal(adapted.head.tensors()["weights"], last)
    assert np.allclose(last, 20 * weights, atol=1e-6)


def test_wise_averages_with_the_text_classifier() -> None:
    task = random_task()
    trained, averaged = (fit(task, replace(OPTIONS, wise=wise)).head.tensors()["weights"] for wise in (0.0, 0.25))
    assert np.allclose(averaged, 0.75 * trained + 0.25 * 20 * task.text.ensemble)


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(classes=2, shots=1, templates=1, views=0, dtype=np.float32),
        random_task(dim=7, dtype=np.float32),
        without_images_of(random_task(), label=1),
        without_images_of(random_task(), label=2, keep=1),
    ],
)
def test_small_and_incomplete_training_sets(task: FewShotTask) -> None:
    before = task.train.image_features.copy()
    head = fit(task, replace(METHOD.options, least_iterations=60)).head
    assert head.logits(torch.from_numpy(before)).isfinite().all()
    assert all(tensor.dtype == before.dtype for tensor in head.tensors().values())
    assert np.array_equal(task.train.image_features, before)


def test_a_diverged_fit_is_an_error() -> None:
    task = random_task(views=0)
    features = task.train.image_features.copy()
    features[0, 0] = np.nan
    for one in (task, replace(task, val=None)):
        with pytest.raises(FitError, match="lower"):
            fit(replace(one, train=Images(features, task.train.labels)), OPTIONS)
