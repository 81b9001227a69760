"""The closed-form gradient of every trainable part, against autograd and computed by hand."""

import math

import pytest
import torch
from torch import Tensor

from taskres_cache.heads.formulas import directions_and_lengths
from taskres_cache.methods.task_residual.step import ProjectionStep, ResidualStep, Step
from taskres_cache.recipe import Recipe
from tests.by_hand import loss

FITS, ROWS, CLASSES, DIM, WIDTH = 2, 9, 4, 6, 5


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients_of(step: Step, labels: Tensor) -> dict[str, Tensor]:
    """Take a step at learning rate 0 on all rows, and return the gradients by name."""
    step.set_rates([0.0] * FITS)
    rows = torch.arange(ROWS).expand(FITS, -1)
    step(rows, labels.expand(FITS, -1)[..., None], torch.empty(FITS, ROWS, 1, dtype=torch.float64))
    gradients = {name: part.gradient.clone() for name, part in step.parts.items()}
    return gradients if step.alpha is None else {**gradients, "alpha": step.alpha.gradient.clone()}


@pytest.mark.parametrize("scale", [1.0, 14.3])
@pytest.mark.parametrize("alpha_rule", ["fixed", "learn"])
@pytest.mark.parametrize("kind", ["text", "image", "both"])
def test_gradients_of_residuals_equal_autograd(kind: str, alpha_rule: str, scale: float) -> None:
    features, base = 3 * random_tensor(0, ROWS, DIM), random_tensor(1, FITS, CLASSES, DIM)  # a different base per fit
    labels = torch.arange(ROWS) % CLASSES
    recipes = [Recipe(residual=kind, alpha=alpha, alpha_rule=alpha_rule) for alpha in (0.7, -1.3)]
    step = ResidualStep(*directions_and_lengths(features), base, scale, recipes, ROWS)
    values = {"residual": random_tensor(2, FITS, CLASSES, DIM), "image_residual": random_tensor(3, FITS, 1, DIM)}
    assert set(step.parts) == {"text": {"residual"}, "image": {"image_residual"}, "both": set(values)}[kind]
    for name, part in step.parts.items():
        part.value.copy_(values[name])
    gradients = gradients_of(step, labels)
    for fit, recipe in enumerate(recipes):
        alpha = torch.tensor(recipe.alpha, dtype=torch.float64, requires_grad=True)
        trained = {name: values[name][fit].clone().requires_grad_() for name in step.parts}
        images = features + alpha * trained["image_residual"] if "image_residual" in trained else features
        weights = base[fit] + alpha * trained["residual"] if "residual" in trained else base[fit]
        loss(images, weights, labels, scale).backward()
        for name, tensor in trained.items():
            assert tensor.grad is not None
            assert tensor.grad.abs().max() > 1e-3
            assert torch.allclose(gradients[name][fit], tensor.grad, rtol=1e-10, atol=1e-14)
        if alpha_rule == "learn":
            assert alpha.grad is not None
            assert gradients["alpha"][fit].item() == pytest.approx(alpha.grad.item(), rel=1e-10)


def test_gradients_of_the_projection_equal_autograd() -> None:
    features, labels = 3 * random_tensor(0, ROWS, DIM), torch.arange(ROWS) % CLASSES
    pre_projection, projection = random_tensor(1, CLASSES, WIDTH), random_tensor(2, WIDTH, DIM)
    step = ProjectionStep(*directions_and_lengths(features), pre_projection, projection, 14.3, [Recipe()] * FITS, ROWS)
    values = random_tensor(3, FITS, WIDTH, DIM)
    step.parts["projection"].value.copy_(values)
    gradients = gradients_of(step, labels)
    for fit in range(FITS):
        tuned = values[fit].clone().requires_grad_()
        loss(features, pre_projection @ tuned, labels, 14.3).backward()
        assert tuned.grad is not None
        assert torch.allclose(gradients["projection"][fit], tuned.grad, rtol=1e-10, atol=1e-14)


def test_an_image_residual_by_hand() -> None:
    # One image (2, 0) and classes along the axes, scale 1, alpha 0.5, residual zero: cosines (1, 0), probabilities
    # p = e/(1+e) and 1-p. The gradient with respect to the image's direction u is (p-1, 1-p). Its part along u vanishes
    # by normalising; the rest, 1-p, is divided by the image's length 2 and multiplied by alpha.
    p = math.e / (1 + math.e)
    features = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    base = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    recipe = Recipe(residual="image", weight_decay=0.0)
    step = ResidualStep(*directions_and_lengths(features), base, 1.0, [recipe], 1)
    step.set_rates([0.25])
    step(torch.tensor([[0]]), torch.tensor([[[0]]]), torch.empty(1, 1, 1, dtype=torch.float64))
    part = step.parts["image_residual"]
    assert torch.allclose(part.gradient, torch.tensor([[[0.0, 0.5 * (1 - p) / 2]]], dtype=torch.float64), atol=1e-15)
    assert torch.allclose(part.value, torch.tensor([[[0.0, -0.25]]], dtype=torch.float64), atol=1e-6)
    head = step.head(0)
    assert torch.equal(head.weights, base)
    assert head.image_shift is not None
    assert torch.allclose(head.image_shift, torch.tensor([[0.0, -0.125]], dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("kind", ["image", "both"])
def test_restart_resets_every_residual(kind: str) -> None:
    features, base = 3 * random_tensor(0, ROWS, DIM), random_tensor(1, CLASSES, DIM)
    recipe = Recipe(residual=kind, alpha_rule="learn")
    step = ResidualStep(*directions_and_lengths(features), base, 10.0, [recipe], ROWS)
    step.set_rates([0.01])
    rows, labels = torch.arange(ROWS)[None], (torch.arange(ROWS) % CLASSES)[None, :, None]
    likelihoods = torch.empty(1, ROWS, 1, dtype=torch.float64)

    def losses_of_four_steps() -> list[float]:
        losses = []
        for _ in range(4):
            step(rows, labels, likelihoods)
            losses.append(-likelihoods.log().mean().item())
        return losses

    losses = losses_of_four_steps()
    assert losses[3] < losses[0]
    step.restart()
    assert losses_of_four_steps() == losses


@pytest.mark.parametrize("kind", ["image", "both"])
def test_bf16_products_give_nearly_the_same_image_residual(kind: str) -> None:
    features, base = (3 * random_tensor(0, 40, 64)).float(), random_tensor(1, 8, 64).float()
    directions, lengths = directions_and_lengths(features)
    recipe = Recipe(residual=kind)
    full = ResidualStep(directions, lengths, base, 100.0, [recipe], 40)
    low = ResidualStep(directions.bfloat16(), lengths, base, 100.0, [recipe], 40)
    rows, labels = torch.arange(40)[None], (torch.arange(40) % 8)[None, :, None]
    for step in (full, low):
        step.set_rates([0.01])
        for _ in range(10):
            step(rows, labels, torch.empty(1, 40, 1))
    exact, rounded = (step.parts["image_residual"].value.flatten() for step in (full, low))
    assert rounded.dtype == torch.float32
    assert 0.98 < torch.cosine_similarity(exact, rounded, dim=0) < 1.0
