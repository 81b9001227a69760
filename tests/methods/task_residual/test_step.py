"""A step in place and in closed form, against autograd, torch.optim.Adam and numbers computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from taskres_cache.heads.formulas import directions_and_lengths
from taskres_cache.methods.task_residual.adam import StackedAdam
from taskres_cache.methods.task_residual.step import ResidualStep
from taskres_cache.recipe import Recipe
from tests.by_hand import loss

SCALE = 100.0


def problem(fits: int = 1, classes: int = 4, dim: int = 5, rows: int = 7, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    features = 3 * torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (fits, rows), generator=generator)
    base = 0.3 * torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    order = torch.stack([torch.randperm(rows, generator=generator) for _ in range(fits)])
    return features, labels, base, order


def residual_step(
    features: torch.Tensor,
    base: torch.Tensor,
    scale: float,
    recipes: list[Recipe],
    batch: int,
    product_type: torch.dtype | None = None,
) -> ResidualStep:
    """Return the steps of residuals on un-normalised features (rows, D)."""
    directions, lengths = directions_and_lengths(features)
    return ResidualStep(directions.to(product_type or base.dtype), lengths, base, scale, recipes, batch)


def text_residuals(step: ResidualStep) -> torch.Tensor:
    """Return the text residuals (K, C, D)."""
    return step.parts["residual"].value


def loss_of_step(step: ResidualStep, order: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Take one step on all rows and return the loss of each fit (K,)."""
    likelihoods = torch.empty(*order.shape, 1, dtype=step._batch.errors.dtype)
    step(order, labels.gather(1, order)[..., None], likelihoods)
    return -likelihoods.log().mean(dim=(1, 2))


def test_a_step_by_hand() -> None:
    # One image along the first axis, two classes along the axes, scale 1: cosines (1, 0), probabilities
    # p = e/(1+e) and 1-p. The gradient of a class is orthogonal to it: zero for the first class, and
    # alpha * (1-p)/|w| = 0.5 (1-p)/4 for the second. Adam's first step is the learning rate times the negative sign.
    p = math.e / (1 + math.e)
    base = torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    step = residual_step(torch.tensor([[1.0, 0.0]], dtype=torch.float64), base, 1.0, [Recipe(weight_decay=0.0)], 1)
    step.set_rates([0.25])
    first_loss = loss_of_step(step, torch.tensor([[0]]), torch.tensor([[0]]))
    assert first_loss.item() == pytest.approx(-math.log(p))
    expected = torch.tensor([[[0.0, 0.0], [0.5 * (1 - p) / 4, 0.0]]], dtype=torch.float64)
    assert torch.allclose(step._batch.weights, expected, atol=1e-15)  # holds the gradient after a step
    moved = torch.tensor([[[0.0, 0.0], [-0.25, 0.0]]], dtype=torch.float64)
    assert torch.allclose(text_residuals(step), moved, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"alpha": 1.0}, {"alpha": -2.0}, {"alpha_rule": "learn"}])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_steps_equal_autograd_and_adam(changes: dict[str, Any], scale: float) -> None:
    features, labels, base, order = problem()
    recipe = Recipe(weight_decay=0.01, **changes)
    residual = torch.nn.Parameter(torch.zeros_like(base))
    alpha = torch.nn.Parameter(torch.tensor(recipe.alpha, dtype=torch.float64))
    trained = [residual, alpha] if recipe.alpha_rule == "learn" else [residual]
    reference = torch.optim.Adam(trained, lr=0.05, weight_decay=0.01)
    step = residual_step(features, base, scale, [recipe], 7)
    step.set_rates([0.05])
    for _ in range(12):
        expected = loss(features, base + alpha * residual, labels[0], scale)
        reference.zero_grad()
        expected.backward()
        reference.step()
        assert loss_of_step(step, order, labels).item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    assert torch.allclose(text_residuals(step)[0], residual.detach(), rtol=1e-8, atol=1e-10)
    assert step.alpha.value.item() == pytest.approx(alpha.item(), rel=1e-9)
    assert (step.alpha.value.item() != recipe.alpha) == (recipe.alpha_rule == "learn")


def test_a_learned_alpha_moves_in_the_right_direction() -> None:
    # With a residual of zero, the gradient of alpha is zero. After one step the residual points to a lower loss, so
    # alpha grows at the next step.
    base = torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    image = normalize(torch.tensor([[1.0, 1.0]], dtype=torch.float64), dim=-1)
    recipe = Recipe(alpha_rule="learn", weight_decay=0.0)
    step = residual_step(image, base, 1.0, [recipe], 1)
    step.set_rates([0.01])
    loss_of_step(step, torch.tensor([[0]]), torch.tensor([[0]]))
    assert step.alpha.value.item() == 0.5
    loss_of_step(step, torch.tensor([[0]]), torch.tensor([[0]]))
    assert step.alpha.value.item() > 0.5
    # With the opposite sign the residual increases the loss, so alpha shrinks.
    text_residuals(step).neg_()
    before = step.alpha.value.item()
    for _ in range(3):
        loss_of_step(step, torch.tensor([[0]]), torch.tensor([[0]]))
    assert step.alpha.value.item() < before


def test_stacked_fits_equal_the_fits_alone() -> None:
    features, labels, base, order = problem(fits=5)
    directions = normalize(features, dim=-1)
    rates = [0.01, 0.05, 0.002, 0.01, 0.05]
    changes = [{"alpha": 0.3}, {"alpha": 1.0, "weight_decay": 0.1}, {"alpha": 2.0}, {"alpha": 0.7}, {"alpha": 0.7}]
    recipes = [Recipe(lr=rate, **change) for rate, change in zip(rates, changes, strict=True)]
    stacked = residual_step(directions, base, SCALE, recipes, 7)
    stacked.set_rates(rates)
    alone = [residual_step(directions, base, SCALE, [recipe], 7) for recipe in recipes]
    for step, rate in zip(alone, rates, strict=True):
        step.set_rates([rate])
    for _ in range(10):
        losses = loss_of_step(stacked, order, labels)
        single = [loss_of_step(step, order[fit : fit + 1], labels[fit : fit + 1]) for fit, step in enumerate(alone)]
        assert torch.allclose(losses, torch.cat(single))
    for fit, step in enumerate(alone):
        assert torch.allclose(text_residuals(stacked)[fit], text_residuals(step)[0], rtol=1e-10, atol=0)


def test_bf16_products_give_nearly_the_same_residual() -> None:
    features, labels, base, order = problem(classes=8, dim=64, rows=40)
    directions, base = normalize(features, dim=-1).float(), base.float()
    full = residual_step(directions, base, SCALE, [Recipe()], 40)
    low = residual_step(directions, base, SCALE, [Recipe(precision="bf16")], 40, torch.bfloat16)
    for step in (full, low):
        step.set_rates([0.01])
    losses = [(loss_of_step(full, order, labels).item(), loss_of_step(low, order, labels).item()) for _ in range(10)]
    assert losses[0][0] == pytest.approx(losses[0][1], rel=0.02)
    assert losses[-1][0] < 0.8 * losses[0][0]
    cosine = torch.cosine_similarity(text_residuals(full).flatten(), text_residuals(low).flatten(), dim=0)
    assert 0.98 < cosine < 1.0
    assert text_residuals(low).dtype == torch.float32


def test_restart_resets_to_the_initial_state() -> None:
    features, labels, base, order = problem()
    recipe = Recipe(alpha_rule="learn")
    step = residual_step(features, base, SCALE, [recipe], 7)
    step.set_rates([0.01])
    losses = [loss_of_step(step, order, labels).item() for _ in range(4)]
    step.restart()
    assert torch.equal(text_residuals(step), torch.zeros_like(text_residuals(step)))
    assert [loss_of_step(step, order, labels).item() for _ in range(4)] == losses


def test_adam_equals_torchs_with_decay_in_the_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    value, gradient = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64), torch.zeros(3, 2, 4).double()
    recipes = [Recipe(lr=0.1, weight_decay=0.05), Recipe(lr=0.1, weight_decay=0.0), Recipe(lr=0.1, weight_decay=0.05)]
    optimiser = StackedAdam([value], [gradient], recipes)
    expected = [torch.nn.Parameter(row.clone()) for row in value]
    references = [
        torch.optim.Adam([one], weight_decay=recipe.weight_decay) for one, recipe in zip(expected, recipes, strict=True)
    ]
    for number in range(20):
        gradient.copy_(torch.randn(3, 2, 4, generator=generator, dtype=torch.float64))
        rate = 0.1 / (number + 1)
        optimiser.set_rates([rate] * 3)
        optimiser.step()
        for one, reference, row in zip(expected, references, gradient, strict=True):
            reference.param_groups[0]["lr"], one.grad = rate, row.clone()
            reference.step()
    assert torch.allclose(value, torch.stack([one.detach() for one in expected]), rtol=1e-12, atol=0)
