"""The fitted temperature, against the temperature that the labels were drawn with."""

import math

import pytest
import torch

from taskres_cache.methods.temperature import fit_temperature


def logits_and_labels(temperature: float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (M, C) and labels drawn from the softmax of `logits / temperature`."""
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(count, 4, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_true_temperature_is_found(temperature: float) -> None:
    assert fit_temperature(*logits_and_labels(temperature, 20_000)) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_minimises_loss_and_prior() -> None:
    logits, labels = logits_and_labels(2.0, 30)

    def penalised(temperature: float) -> float:
        likelihoods = (logits.double() / temperature).softmax(-1)[torch.arange(30), labels]
        return -likelihoods.log().sum().item() + math.log(temperature) ** 2 / 2

    best = min((math.exp(power / 1000) for power in range(-3000, 3000)), key=penalised)
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=2e-3)


def test_correct_predictions_on_all_validation_images_give_a_finite_temperature() -> None:
    logits = 5.0 * torch.eye(3)
    assert 0.3 < fit_temperature(logits, torch.arange(3)) < 1.0


def test_without_images_the_temperature_is_1() -> None:
    assert fit_temperature(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)) == 1.0
