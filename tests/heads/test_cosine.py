"""The model against numbers computed by hand."""

import math

import numpy as np
import pytest
import torch

from taskres_cache.heads.formulas import add_residual, scaled_cosines
from taskres_cache.heads.kinds import CosineHead
from tests import by_hand


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
    assert torch.allclose(scaled_cosines(features, weights, 100.0), torch.tensor([[60.0, 80.0]]))
    assert torch.allclose(CosineHead(weights, 100.0).logits(features), torch.tensor([[60.0, 80.0]]))
    assert torch.allclose(CosineHead(weights, 100.0).scores(features), torch.tensor([[0.6, 0.8]]))


def test_image_shift_and_temperature_by_hand() -> None:
    # (1, 4) + (2, 0) = (3, 4); logits 60 and 80 at temperature 10 are 6 and 8, so the second class has 1 / (1 + e^-2)
    head = CosineHead(torch.tensor([[2.0, 0.0], [0.0, 0.5]]), 100.0, torch.tensor([2.0, 0.0]), temperature=10.0)
    probabilities = head.probabilities(torch.tensor([[1.0, 4.0]]))
    assert probabilities[0, 1].item() == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-6)
    assert torch.allclose(head.logits(torch.tensor([[1.0, 4.0]])), torch.tensor([[60.0, 80.0]]))


def test_weights_of_arrays_are_base_plus_alpha_times_residual(problem: dict[str, torch.Tensor]) -> None:
    base, residual = (problem[name].numpy() for name in ("base", "residual"))
    row = np.arange(5.0)
    head = CosineHead.of_arrays(base, 100.0, residual, row, alpha=0.5)
    assert head.image_shift is not None
    assert np.array_equal(head.weights.numpy(), base + 0.5 * residual)
    assert np.array_equal(head.image_shift.numpy(), 0.5 * row)
    plain = CosineHead.of_arrays(base, 100.0)
    assert plain.image_shift is None
    assert np.shares_memory(plain.weights.numpy(), base)


def test_a_head_of_some_classes_keeps_their_order(problem: dict[str, torch.Tensor]) -> None:
    head = CosineHead(problem["base"], 100.0).of_classes(np.array([2, 0]))
    whole = CosineHead(problem["base"], 100.0).scores(problem["image_features"])
    assert torch.allclose(head.scores(problem["image_features"]), whole[:, [2, 0]])


def test_converting_a_head_converts_every_tensor(problem: dict[str, torch.Tensor]) -> None:
    head = CosineHead(problem["base"], 100.0, problem["residual"][0]).to(torch.float32)
    assert head.image_shift is not None
    assert (head.weights.dtype, head.image_shift.dtype) == (torch.float32, torch.float32)


def test_a_zero_residual_gives_the_base_bit_for_bit(problem: dict[str, torch.Tensor]) -> None:
    base = problem["base"].float()
    weights = add_residual(base, torch.zeros_like(base), 0.37)
    assert torch.equal(weights, base)
    features = problem["image_features"].float()
    assert torch.equal(scaled_cosines(features, weights, 100.0), scaled_cosines(features, base, 100.0))


def test_score_by_hand() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
    features = torch.tensor([[5.0, 1.0], [1.0, 2.0], [0.1, 0.2], [3.0, 1.0]])
    accuracy, _ = CosineHead(weights, 1.0).score(features, torch.tensor([0, 1, 0, 0]))
    assert accuracy == 75.0


def test_probabilities_by_hand() -> None:
    # (3, 4) + (1, 0) = (4, 4) is equally close to both classes; temperature 2 halves a difference of logits
    weights, features = torch.tensor([[2.0, 0.0], [0.0, 0.5]]), torch.tensor([[3.0, 4.0]])
    assert CosineHead(weights, 100.0, torch.tensor([1.0, 0.0])).probabilities(features).tolist() == [[0.5, 0.5]]
    expected = 1 / (1 + math.exp(10 * (0.8 - 0.6) / 2))
    assert CosineHead(weights, 10.0, temperature=2.0).probabilities(features)[0, 0].item() == pytest.approx(expected)


def test_a_head_equals_the_second_implementation(problem: dict[str, torch.Tensor]) -> None:
    features, labels, base, residual = (problem[name].numpy() for name in problem)
    shift = np.linspace(-1.0, 1.0, 5)
    head = CosineHead.of_arrays(base, 100.0, residual, shift, alpha=0.5, temperature=3.0)
    model = {"weights": base + 0.5 * residual, "image_shift": 0.5 * shift}
    images = problem["image_features"]
    expected = by_hand.logits(features, logit_scale=100.0, **model)
    assert np.allclose(head.logits(images).numpy(), expected, rtol=1e-12)
    assert np.allclose(head.scores(images).numpy(), expected / 100, rtol=1e-12)
    likelihoods = by_hand.probabilities(features, logit_scale=100.0, temperature=3.0, **model)
    assert np.allclose(head.probabilities(images).numpy(), likelihoods, rtol=1e-10)
    accuracy, minus_loss = head.score(images, problem["labels"])
    assert accuracy == pytest.approx(by_hand.accuracy(features, labels=labels, **model))
    assert -minus_loss == pytest.approx(by_hand.mean_cross_entropy(expected, labels))


def test_the_second_implementation_by_hand() -> None:
    # the numbers of the tests above
    features, weights = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 0.5]])
    assert np.allclose(by_hand.logits(features, weights, 100.0), [[60.0, 80.0], [100.0, 0.0]])
    assert np.allclose(by_hand.logits(features[:1] - [2.0, 0.0], weights, 100.0, np.array([2.0, 0.0])), [[60.0, 80.0]])
    found = by_hand.probabilities(features, weights, 10.0, temperature=2.0)
    assert found[0, 0] == pytest.approx(1 / (1 + math.exp(10 * (0.8 - 0.6) / 2)))
    assert by_hand.accuracy(features, weights, np.array([1, 1])) == 50.0
    logits = by_hand.logits(features, weights, 100.0)
    expected = -(math.log(1 / (1 + math.exp(-20.0))) + math.log(1 / (1 + math.exp(100.0)))) / 2
    assert by_hand.mean_cross_entropy(logits, np.array([1, 1])) == pytest.approx(expected)


def test_loss_by_hand() -> None:
    # cosines 1 and 0 at scale 1: probability e/(1+e) for the first class, 1/(1+e) for the second
    weights, features = torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    likelihoods = math.e / (1 + math.e), 1 / (1 + math.e)
    _, minus_loss = CosineHead(weights, 1.0).score(features, torch.tensor([0, 1]))
    assert -minus_loss == pytest.approx(-sum(map(math.log, likelihoods)) / 2)
