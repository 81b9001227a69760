"""The training loop against an independent reference of autograd and torch.optim.Adam."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from taskres_cache.errors import FitError, OptionError
from taskres_cache.methods.task_residual.loop import epoch_order, fit_residuals
from taskres_cache.methods.task_residual.stacking import stacks
from taskres_cache.methods.task_residual.task import Fit, FitTask
from taskres_cache.methods.training_sets import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe

CPU = torch.device("cpu")
SCALE = 100.0


def few_shots(count: int, classes: int, dim: int) -> tuple[TrainingSet, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, dim))
    features = 5 * centres[labels] + 15 * rng.normal(size=(count, dim))  # far apart enough for real gradients
    return TrainingSet.from_features(features, labels), 0.3 * (centres + 0.5 * rng.normal(size=(classes, dim)))


def train_and_val() -> tuple[TrainingSet, ValidationSet, np.ndarray]:
    both, _ = few_shots(90, classes=5, dim=12)
    base = 0.3 * np.random.default_rng(8).normal(size=(5, 12))  # that knows nothing, so that there is much to learn
    features, labels = both.directions[0], both.labels
    return TrainingSet.from_features(features[:40], labels[:40]), ValidationSet(features[40:], labels[40:]), base


def fit_alone(training: TrainingSet, base: np.ndarray, recipe: Recipe, epochs: int, seed: int) -> Fit:
    return fit_residuals([FitTask(training, recipe, epochs, seed, base=base)], SCALE, CPU)[0]


def reference_residual(
    training: TrainingSet,
    base: np.ndarray,
    alpha: float,
    lr: float,
    decay: float,
    epochs: int,
    batch: int,
    seed: int,
    stop: int | None = None,
) -> np.ndarray:
    """The recipe a second time, as research code writes it: a module, autograd, torch's own optimiser."""
    views, labels = torch.from_numpy(training.directions), torch.from_numpy(training.labels)
    text = torch.from_numpy(base)
    residual = torch.nn.Parameter(torch.zeros_like(text))
    optimiser = torch.optim.Adam([residual], lr=lr, weight_decay=decay)
    shuffler = torch.Generator().manual_seed(seed)
    for epoch in range(stop or epochs):
        rate = 1e-5 if epoch == 0 else 0.5 * lr * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        optimiser.param_groups[0]["lr"] = rate
        order = torch.randperm(len(labels), generator=shuffler)
        full = len(labels) // batch
        for rows in [order[n * batch : (n + 1) * batch] for n in range(full)] if full else [order]:
            cosines = normalize(views[epoch % len(views)][rows], dim=-1) @ normalize(text + alpha * residual, dim=-1).T
            optimiser.zero_grad()
            cross_entropy(SCALE * cosines, labels[rows]).backward()
            optimiser.step()
    return residual.detach().numpy()


@pytest.mark.parametrize(("count", "batch"), [(50, 16), (48, 16), (10, 16), (16, 16)])
def test_residual_equals_the_reference(count: int, batch: int) -> None:
    training, base = few_shots(count, classes=5, dim=12)
    recipe = Recipe(alpha=0.7, lr=5e-3, batch_size=batch, weight_decay=2e-3)
    fit = fit_alone(training, base, recipe, epochs=15, seed=4)
    reference = reference_residual(training, base, 0.7, 5e-3, 2e-3, epochs=15, batch=batch, seed=4)
    assert fit.residual.dtype == np.float64
    assert np.abs(reference).max() > 1e-2
    assert np.abs(fit.residual - reference).max() <= 1e-5 * np.abs(reference).max()


def test_fit_depends_on_the_seed_alone() -> None:
    training, base = few_shots(50, classes=5, dim=12)
    recipe = Recipe(batch_size=16)
    first, again, other = (fit_alone(training, base, recipe, 5, seed).residual for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_losses_fall_and_there_is_one_an_epoch() -> None:
    training, base = few_shots(60, classes=5, dim=12)
    fit = fit_alone(training, base.astype(np.float32), Recipe(), epochs=40, seed=1)
    assert len(fit.losses) == 40
    assert fit.losses[-1] < fit.losses[0]
    assert fit.residual.dtype == np.float32


def test_first_loss_is_that_of_zero_shot() -> None:
    training, base = few_shots(20, classes=5, dim=12)
    fit = fit_alone(training, base, Recipe(), epochs=1, seed=1)
    features, text = torch.from_numpy(training.directions[0]), torch.from_numpy(base)
    cosines = normalize(features, dim=-1) @ normalize(text, dim=-1).T
    assert fit.losses[0] == pytest.approx(cross_entropy(SCALE * cosines, torch.from_numpy(training.labels)).item())


@pytest.mark.parametrize(("count", "batch", "shape"), [(10, 4, (2, 4)), (8, 4, (2, 4)), (3, 3, (1, 3)), (5, 4, (1, 4))])
def test_rows_that_fill_no_batch_are_dropped(count: int, batch: int, shape: tuple[int, int]) -> None:
    order = epoch_order(count, batch, torch.Generator().manual_seed(0))
    assert tuple(order.shape) == shape
    assert len(set(order.flatten().tolist())) == order.numel()


def test_a_fit_that_diverges_says_so() -> None:
    training, base = few_shots(20, classes=5, dim=12)
    with pytest.raises(FitError, match="became NaN or infinite in epoch .* with lr 1e\\+300"):
        fit_alone(training, base, Recipe(lr=1e300), epochs=5, seed=1)


def tasks_of_a_grid(dtype: type = np.float64) -> list[FitTask]:
    """Three sizes, two seeds with training sets of their own, four recipes that differ in what is each fit's own."""
    base = few_shots(50, classes=5, dim=12)[1].astype(dtype)
    sets = [
        TrainingSet.from_features(*one)
        for one in (
            (few.directions[0, :n], few.labels[:n]) for n in (50, 50, 30, 16) for few in [few_shots(60, 5, 12)[0]]
        )
    ]
    sets[1] = TrainingSet.from_features(sets[1].directions[0, ::-1].copy(), sets[1].labels[::-1].copy())
    recipes = [
        Recipe(alpha=alpha, lr=lr, weight_decay=decay, batch_size=16)
        for alpha, lr, decay in ((0.5, 2e-3, 5e-4), (2.0, 5e-3, 0.0))
    ]
    recipes += [Recipe(alpha_rule="learn", batch_size=16), Recipe(lr=1e-2, batch_size=16)]
    return [FitTask(training, recipe, 12, seed, base=base) for seed, training in enumerate(sets) for recipe in recipes]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fit_in_a_grid_is_the_fit_alone(dtype: type) -> None:
    tasks = tasks_of_a_grid(dtype)
    assert max(map(len, stacks(tasks, tasks[0].base.size, CPU))) >= 6  # or nothing would be stacked
    for task, together in zip(tasks, fit_residuals(tasks, SCALE, CPU), strict=True):
        (alone,) = fit_residuals([task], SCALE, CPU)
        assert np.abs(together.residual - alone.residual).max() <= 1e-5 * np.abs(alone.residual).max()
        assert together.losses == pytest.approx(alone.losses, rel=1e-5)
        assert together.alpha == pytest.approx(alone.alpha, rel=1e-6)
        assert (together.alpha == task.recipe.alpha) == (task.recipe.alpha_rule == "fixed")  # to the last digit


def test_stacks_hold_fits_of_one_shape_and_no_more_than_gains() -> None:
    tasks = tasks_of_a_grid()
    found = stacks(tasks, tasks[0].base.size, CPU)
    assert sorted(number for stack in found for number in stack) == list(range(len(tasks)))
    for stack in found:
        assert len({(len(tasks[n].training.labels), tasks[n].recipe.alpha_rule) for n in stack}) == 1
    assert all(len(stack) == 1 for stack in stacks(tasks, 1000 * 1024, CPU))


def test_patience_keeps_the_best_epoch_on_val() -> None:
    training, validation, base = train_and_val()
    recipe = Recipe(lr=0.3, batch_size=16, patience=4)
    (fit,) = fit_residuals([FitTask(training, recipe, 60, 1, validation, base=base)], SCALE, CPU)
    assert 1 < fit.kept_epochs < 60 - 4
    assert len(fit.losses) == fit.kept_epochs + 4
    # The residual is what the same fit had after just that many epochs: the schedule does not know of patience.

    def val_after(epochs: int) -> tuple[float, float]:
        residual = reference_residual(training, base, 0.5, 0.3, 5e-4, 60, 16, 1, stop=epochs)
        logits = (
            SCALE
            * normalize(torch.from_numpy(validation.image_features), dim=-1)
            @ normalize(torch.from_numpy(base + 0.5 * residual), dim=-1).T
        )
        labels = torch.from_numpy(validation.labels)
        return (logits.argmax(1) == labels).double().mean().item(), -cross_entropy(logits, labels).item()

    scores = [val_after(epochs) for epochs in range(1, fit.kept_epochs + 5)]
    assert scores.index(max(scores)) + 1 == fit.kept_epochs
    expected = reference_residual(training, base, 0.5, 0.3, 5e-4, 60, 16, 1, stop=fit.kept_epochs)
    assert np.abs(fit.residual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_patience_in_a_stack_is_patience_alone() -> None:
    training, validation, base = train_and_val()
    recipes = [Recipe(lr=lr, batch_size=16, patience=3) for lr in (0.1, 0.003)]
    tasks = [FitTask(training, recipe, 40, 1, validation, base=base) for recipe in recipes]
    alone = [fit_residuals([task], SCALE, CPU)[0] for task in tasks]
    together = fit_residuals(tasks, SCALE, CPU)
    assert [fit.kept_epochs for fit in together] == [fit.kept_epochs for fit in alone]
    # The first is done while the second goes on, through an epoch in which the first would have become better again.
    unhurried = FitTask(training, tasks[0].recipe.changed(patience=39), 40, 1, validation, base=base)
    later = fit_residuals([unhurried], SCALE, CPU)[0].kept_epochs
    assert alone[0].kept_epochs + 3 < later < alone[1].kept_epochs + 3
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(one.residual, other.residual, rtol=1e-6)
        assert len(one.losses) == len(other.losses)


def test_patience_without_val_images_is_refused() -> None:
    training, base = few_shots(20, classes=5, dim=12)
    with pytest.raises(OptionError, match="patience needs validation images"):
        fit_alone(training, base, Recipe(patience=2), epochs=3, seed=1)


def test_bf16_comes_to_the_same_classifier_nearly() -> None:
    training, base = few_shots(200, classes=5, dim=64)
    base = base.astype(np.float32)
    full, low = (fit_alone(training, base, Recipe(precision=precision), 30, 1) for precision in ("fp32", "bf16"))
    assert low.residual.dtype == np.float32
    cosine = (low.residual * full.residual).sum() / np.linalg.norm(low.residual) / np.linalg.norm(full.residual)
    assert 0.99 < cosine < 1.0
    assert low.losses[-1] == pytest.approx(full.losses[-1], rel=0.05)


def test_tf32_is_refused_where_there_is_none() -> None:
    training, base = few_shots(20, classes=5, dim=12)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(OptionError, match="tf32 needs CUDA, got device cpu"):
        fit_alone(training, base, Recipe(precision="tf32"), epochs=3, seed=1)
    try:  # what a program around us has set is set again, after a fit as after a refusal
        torch.set_float32_matmul_precision("medium")
        fit_alone(training, base, Recipe(), epochs=1, seed=1)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("views", [2, 3, 40])
def test_epoch_e_takes_view_e_mod_v(views: int) -> None:
    rng = np.random.default_rng(views)
    one, base = few_shots(50, classes=5, dim=12)
    several = TrainingSet.from_views(
        np.stack([rng.permutation(one.directions[0], axis=1) for _ in range(views)]), one.labels
    )
    fitted = fit_alone(several, base, Recipe(batch_size=16), epochs=30, seed=3)
    reference = reference_residual(several, base, 0.5, 2e-3, 5e-4, 30, 16, 3)
    assert np.abs(fitted.residual - reference).max() <= 1e-9 * np.abs(reference).max()
    only_first = reference_residual(one, base, 0.5, 2e-3, 5e-4, 30, 16, 3)
    assert np.abs(fitted.residual - only_first).max() > 0.01 * np.abs(reference).max()


def test_fits_with_views_are_stacked_with_their_like() -> None:
    rng = np.random.default_rng(1)
    one, base = few_shots(48, classes=5, dim=12)
    stacks_of_views = [
        TrainingSet.from_views(np.stack([rng.permutation(one.directions[0], axis=1) for _ in range(count)]), one.labels)
        for count in (3, 3, 1)
    ]
    recipe = Recipe(batch_size=16)
    tasks = [FitTask(training, recipe, 7, seed, base=base) for seed, training in enumerate(stacks_of_views)]
    assert stacks(tasks, base.size, CPU) == [[0, 1], [2]]
    for task, fit in zip(tasks, fit_residuals(tasks, SCALE, CPU), strict=True):
        (alone,) = fit_residuals([task], SCALE, CPU)
        assert np.abs(fit.residual - alone.residual).max() <= 1e-9 * np.abs(alone.residual).max()


def test_views_in_pieces_are_the_first_of_each_image() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 4, 12)).astype(np.float32), np.arange(20) % 5
    pieces = ((positions, features[positions]) for positions in np.array_split(rng.permutation(20), 3))
    read = TrainingSet.from_view_pieces(pieces, labels, 12, views=3)
    expected = features[:, :3] / np.linalg.norm(features[:, :3], axis=-1, keepdims=True)
    assert read.directions.shape == (3, 20, 12)
    assert np.allclose(read.lengths, np.linalg.norm(features[:, :3], axis=-1).T)
    assert np.allclose(read.directions, expected.transpose(1, 0, 2), atol=1e-6)


def test_features_that_were_handed_in_stay_as_they_were() -> None:
    features = np.random.default_rng(0).normal(size=(20, 12))
    before = features.copy()
    training = TrainingSet.from_features(features, np.arange(20) % 5)
    normalised = training.directions.copy()
    fit_alone(training, few_shots(20, classes=5, dim=12)[1], Recipe(), epochs=1, seed=1)
    assert np.array_equal(features, before)
    assert np.array_equal(training.directions, normalised)
    assert np.allclose(np.linalg.norm(normalised, axis=-1), 1)


def test_a_training_set_in_pieces_is_the_set_at_once() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 12)).astype(np.float32), np.arange(20) % 5
    order = rng.permutation(20)
    pieces = ((positions, features[positions]) for positions in np.array_split(order, 3))
    read, whole = TrainingSet.from_pieces(pieces, labels, 12), TrainingSet.from_features(features, labels)
    assert np.array_equal(read.directions, whole.directions)
    assert np.array_equal(read.lengths, whole.lengths)
    assert np.array_equal(read.labels, labels)
