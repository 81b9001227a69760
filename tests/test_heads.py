"""The numerics against numbers worked out by hand."""

import math

import pytest
import torch

from taskres_cache.heads import classifier, count_correct, logits, mean_loss


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


def test_zero_residual_is_the_base_to_the_bit(problem: dict[str, torch.Tensor]) -> None:
    base = problem["base"].float()
    weights = classifier(base, torch.zeros_like(base), 0.37)
    assert torch.equal(weights, base)
    features = problem["image_features"].float()
    assert torch.equal(logits(features, weights, 100.0), logits(features, base, 100.0))


def test_counting_by_hand() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
    features = torch.tensor([[5.0, 1.0], [1.0, 2.0], [0.1, 0.2], [3.0, 1.0]])
    assert count_correct(features, torch.tensor([0, 1, 0, 0]), weights).item() == 3


def test_mean_loss_by_hand() -> None:
    # cosines 1 and 0 at scale 1: probability e/(1+e) for the first class, 1/(1+e) for the second
    weights, features = torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    likelihoods = math.e / (1 + math.e), 1 / (1 + math.e)
    loss = mean_loss(features, torch.tensor([0, 1]), weights, 1.0)
    assert loss.item() == pytest.approx(-sum(map(math.log, likelihoods)) / 2)
