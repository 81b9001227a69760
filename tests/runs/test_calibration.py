"""Confidence against numbers worked out by hand, and a temperature against what made the labels."""

import math

import numpy as np
import pytest
import torch

from taskres_cache.heads import Head
from taskres_cache.methods.temperature import fit_temperature
from taskres_cache.runs.scores import Predictions, class_accuracies, confusion_matrix, reliability


def drawn(scale: float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (M, C) and labels that were drawn from the softmax of `logits / scale`."""
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(count, 4, generator=generator)
    return logits, torch.multinomial((logits / scale).softmax(-1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_a_temperature_finds_what_made_the_labels(scale: float) -> None:
    assert fit_temperature(*drawn(scale, 20_000)) == pytest.approx(scale, rel=0.05)


def test_a_temperature_minimises_loss_and_prior() -> None:
    logits, labels = drawn(2.0, 30)

    def penalised(temperature: float) -> float:
        likelihoods = (logits.double() / temperature).softmax(-1)[torch.arange(30), labels]
        return -likelihoods.log().sum().item() + math.log(temperature) ** 2 / 2

    best = min((math.exp(power / 1000) for power in range(-3000, 3000)), key=penalised)
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=2e-3)


def test_a_perfect_val_split_does_not_make_a_classifier_certain() -> None:
    logits = 5.0 * torch.eye(3)
    assert 0.3 < fit_temperature(logits, torch.arange(3)) < 1.0


def test_without_images_there_is_no_temperature() -> None:
    assert fit_temperature(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)) == 1.0


def test_calibration_error_by_hand() -> None:
    # Two bins: three images at 0.5, 0.4, 0.3, one of them right (|0.4 - 1/3|), and one at 0.9 that is wrong.
    found = reliability(np.array([0.5, 0.4, 0.3, 0.9]), np.array([True, False, False, False]), bins=2)
    assert found.counts.tolist() == [3, 1]  # an upper edge belongs to its bin
    assert found.confidences.tolist() == pytest.approx([0.4, 0.9])
    assert found.accuracies.tolist() == pytest.approx([1 / 3, 0.0])
    assert found.error == pytest.approx(100 * (3 * (0.4 - 1 / 3) + 0.9) / 4)


def test_certain_and_right_is_no_error() -> None:
    found = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert (found.counts[0], found.counts[-1], found.error) == (1, 1, 0.0)


def said(labels: list[int], classes: list[int]) -> Predictions:
    nothing = np.zeros(len(labels), np.float32)
    return Predictions(np.array(labels), np.array(classes), nothing.astype(bool), nothing, nothing)


def test_classes_by_hand() -> None:
    of = said([0, 0, 1, 3], [0, 1, 1, 0])
    assert of.accuracy == 50.0
    assert class_accuracies(of, 4) == [50.0, 100.0, None, 0.0]
    assert confusion_matrix(of, 4).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_probabilities_by_hand() -> None:
    # (3, 4) moved by (1, 0) is (4, 4), as near to either class; temperature 2 halves a difference of logits
    weights, features = torch.tensor([[2.0, 0.0], [0.0, 0.5]]), torch.tensor([[3.0, 4.0]])
    assert Head(weights, 100.0, torch.tensor([1.0, 0.0])).probabilities(features).tolist() == [[0.5, 0.5]]
    expected = 1 / (1 + math.exp(10 * (0.8 - 0.6) / 2))
    assert Head(weights, 10.0, temperature=2.0).probabilities(features)[0, 0].item() == pytest.approx(expected)
