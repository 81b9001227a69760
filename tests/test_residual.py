"""The numerics against autograd, torch.optim.Adam and numbers worked out by hand."""

import math

import pytest
import torch

from taskres_cache.residual import Adam, accuracy, classifier, logits, normalise, residual_gradient


@pytest.fixture
def problem() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image_features": 3 * torch.randn(7, 5, generator=generator, dtype=torch.float64),
        "labels": torch.tensor([0, 1, 2, 3, 0, 1, 1]),
        "base": 0.3 * torch.randn(4, 5, generator=generator, dtype=torch.float64),
        "residual": 0.1 * torch.randn(4, 5, generator=generator, dtype=torch.float64),
    }


def test_logits_by_hand() -> None:
    # lengths 5 and 2: the cosine of (3, 4) with (2, 0) is 3/5, with (0, 0.5) 4/5
    features, weights = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    assert torch.allclose(logits(features, weights, 100.0), torch.tensor([[60.0, 80.0]]))


def test_loss_and_gradient_by_hand() -> None:
    # One image along the first axis, two classes along the axes, scale 1: cosines (1, 0), probabilities
    # p = e/(1+e) and 1-p. g = (p-1, 0) and (1-p, 0); what is at right angles to each class: 0 and (1-p, 0).
    p = math.e / (1 + math.e)
    base = torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    outcome = residual_gradient(
        torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0]), base, torch.zeros_like(base), 0.5, 1.0
    )
    assert outcome.loss.item() == pytest.approx(-math.log(p))
    expected = torch.tensor([[0.0, 0.0], [0.5 * (1 - p) / 4, 0.0]], dtype=torch.float64)
    assert torch.allclose(outcome.gradient, expected, atol=1e-15)


@pytest.mark.parametrize(("alpha", "scale"), [(0.5, 100.0), (1.0, 14.3), (-2.0, 1.0)])
def test_gradient_is_autograds(problem: dict[str, torch.Tensor], alpha: float, scale: float) -> None:
    residual = problem["residual"].clone().requires_grad_()
    features, weights = problem["image_features"], problem["base"] + alpha * residual
    cosines = torch.nn.functional.normalize(features, dim=-1) @ torch.nn.functional.normalize(weights, dim=-1).T
    loss = torch.nn.functional.cross_entropy(scale * cosines, problem["labels"])
    loss.backward()
    outcome = residual_gradient(
        normalise(features), problem["labels"], problem["base"], problem["residual"], alpha, scale
    )
    assert outcome.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert residual.grad is not None
    assert torch.allclose(outcome.gradient, residual.grad, rtol=1e-10, atol=1e-13)


def test_adam_is_torchs_with_decay_in_the_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    ours = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    theirs = torch.nn.Parameter(ours.clone())
    optimiser, reference = Adam(ours, 0.05), torch.optim.Adam([theirs], lr=1.0, weight_decay=0.05)
    for step in range(20):
        gradient, rate = torch.randn(3, 4, generator=generator, dtype=torch.float64), 0.1 / (step + 1)
        optimiser.step(gradient, rate)
        reference.param_groups[0]["lr"], theirs.grad = rate, gradient.clone()
        reference.step()
    assert torch.allclose(ours, theirs.detach(), rtol=1e-12, atol=0)


def test_zero_residual_is_the_base_to_the_bit(problem: dict[str, torch.Tensor]) -> None:
    base = problem["base"].float()
    weights = classifier(base, torch.zeros_like(base), 0.37)
    assert torch.equal(weights, base)
    features = problem["image_features"].float()
    assert torch.equal(logits(features, weights, 100.0), logits(features, base, 100.0))


def test_accuracy_by_hand() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
    features = torch.tensor([[5.0, 1.0], [1.0, 2.0], [0.1, 0.2], [3.0, 1.0]])
    assert accuracy(features, torch.tensor([0, 1, 0, 0]), weights) == 75.0
