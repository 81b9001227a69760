"""Scores of predictions against numbers computed by hand."""

import numpy as np
import pytest

from taskres_cache.runs.scores import Predictions, class_accuracies, confusion_matrix, reliability


def predictions(labels: list[int], classes: list[int]) -> Predictions:
    zeros = np.zeros(len(labels), np.float32)
    return Predictions(np.array(labels), np.array(classes), zeros.astype(bool), zeros, zeros)


def test_accuracy_by_class_and_confusion() -> None:
    predicted = predictions([0, 0, 1, 3], [0, 1, 1, 0])
    assert predicted.accuracy == 50.0
    assert class_accuracies(predicted, 4) == [50.0, 100.0, None, 0.0]
    assert confusion_matrix(predicted, 4).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_calibration_error() -> None:
    # Two bins: three images at 0.5, 0.4, 0.3, one of them correct (|0.4 - 1/3|), and one at 0.9 that is wrong.
    bins = reliability(np.array([0.5, 0.4, 0.3, 0.9]), np.array([True, False, False, False]), bins=2)
    assert bins.counts.tolist() == [3, 1]  # a bin includes its upper edge
    assert bins.confidences.tolist() == pytest.approx([0.4, 0.9])
    assert bins.accuracies.tolist() == pytest.approx([1 / 3, 0.0])
    assert bins.error == pytest.approx(100 * (3 * (0.4 - 1 / 3) + 0.9) / 4)


def test_confidence_that_equals_accuracy_is_no_error() -> None:
    bins = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert (bins.counts[0], bins.counts[-1], bins.error) == (1, 1, 0.0)
