"""The training loop against an independent reference of autograd and torch.optim.Adam."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from taskres_cache.errors import FitError
from taskres_cache.fitting import TrainingSet, epoch_batches, fit_residual, regular_base
from taskres_cache.recipe import Recipe

CPU = torch.device("cpu")
SCALE = 100.0


def few_shots(count: int, classes: int, dim: int) -> tuple[TrainingSet, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, dim))
    features = 5 * centres[labels] + 15 * rng.normal(size=(count, dim))  # far apart enough for real gradients
    return TrainingSet(features, labels), 0.3 * (centres + 0.5 * rng.normal(size=(classes, dim)))


def reference_residual(
    training: TrainingSet, base: np.ndarray, alpha: float, lr: float, decay: float, epochs: int, batch: int, seed: int
) -> np.ndarray:
    """The recipe a second time, as research code writes it: a module, autograd, torch's own optimiser."""
    features, labels = torch.from_numpy(training.image_features), torch.from_numpy(training.labels)
    text = torch.from_numpy(base)
    residual = torch.nn.Parameter(torch.zeros_like(text))
    optimiser = torch.optim.Adam([residual], lr=lr, weight_decay=decay)
    shuffler = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        rate = 1e-5 if epoch == 0 else 0.5 * lr * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        optimiser.param_groups[0]["lr"] = rate
        order = torch.randperm(len(labels), generator=shuffler)
        full = len(labels) // batch
        for rows in [order[n * batch : (n + 1) * batch] for n in range(full)] if full else [order]:
            cosines = normalize(features[rows], dim=-1) @ normalize(text + alpha * residual, dim=-1).T
            optimiser.zero_grad()
            cross_entropy(SCALE * cosines, labels[rows]).backward()
            optimiser.step()
    return residual.detach().numpy()


@pytest.mark.parametrize(("count", "batch"), [(50, 16), (48, 16), (10, 16), (16, 16)])
def test_residual_equals_the_reference(count: int, batch: int) -> None:
    training, base = few_shots(count, classes=5, dim=12)
    recipe = Recipe(alpha=0.7, lr=5e-3, batch_size=batch, weight_decay=2e-3)
    fit = fit_residual(training, base, SCALE, recipe, epochs=15, seed=4, device=CPU)
    reference = reference_residual(training, base, 0.7, 5e-3, 2e-3, epochs=15, batch=batch, seed=4)
    assert fit.residual.dtype == np.float64
    assert np.abs(reference).max() > 1e-2
    assert np.abs(fit.residual - reference).max() <= 1e-5 * np.abs(reference).max()


def test_fit_depends_on_the_seed_alone() -> None:
    training, base = few_shots(50, classes=5, dim=12)
    recipe = Recipe(batch_size=16)
    first, again, other = (fit_residual(training, base, SCALE, recipe, 5, seed, CPU).residual for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_losses_fall_and_there_is_one_an_epoch() -> None:
    training, base = few_shots(60, classes=5, dim=12)
    fit = fit_residual(training, base.astype(np.float32), SCALE, Recipe(), epochs=40, seed=1, device=CPU)
    assert len(fit.losses) == 40
    assert fit.losses[-1] < fit.losses[0]
    assert fit.residual.dtype == np.float32


def test_first_loss_is_that_of_zero_shot() -> None:
    training, base = few_shots(20, classes=5, dim=12)
    fit = fit_residual(training, base, SCALE, Recipe(), epochs=1, seed=1, device=CPU)
    features, text = torch.from_numpy(training.image_features), torch.from_numpy(base)
    cosines = normalize(features, dim=-1) @ normalize(text, dim=-1).T
    assert fit.losses[0] == pytest.approx(cross_entropy(SCALE * cosines, torch.from_numpy(training.labels)).item())


@pytest.mark.parametrize(
    ("count", "batch", "sizes"), [(10, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (4, 4, [4]), (5, 4, [4])]
)
def test_short_batch_is_dropped_only_beside_a_full_one(count: int, batch: int, sizes: list[int]) -> None:
    batches = epoch_batches(count, batch, torch.Generator().manual_seed(0))
    assert [len(rows) for rows in batches] == sizes
    assert len(set(torch.cat(batches).tolist())) == sum(sizes)


def test_regular_base_normalises_nothing() -> None:
    embeddings = np.array([[[2.0, 0.0], [0.0, 4.0]]])
    assert regular_base(embeddings).tolist() == [[1.0, 2.0]]


def test_a_fit_that_diverges_says_so() -> None:
    training, base = few_shots(20, classes=5, dim=12)
    with pytest.raises(FitError, match="diverged in epoch .* with lr 1e\\+300"):
        fit_residual(training, base, SCALE, Recipe(lr=1e300), epochs=5, seed=1, device=CPU)
