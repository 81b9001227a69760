"""When an exported file agrees with its run: differences worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import ExportError
from taskres_cache.exporting.comparison import Comparison, Predict, Reference, compare, tolerance_at
from taskres_cache.runs.run import read_classifier
from tests.exporting.exported import fitted

FILE = Path("head.onnx")


@pytest.fixture
def run(cache_file: Path, tmp_path: Path) -> Path:
    return fitted(FeatureCache(cache_file), tmp_path / "runs")


def predicting(probabilities: list[list[float]]) -> Predict:
    """Return a function that predicts the same probabilities for all inputs."""
    return lambda _files, _inputs: np.array(probabilities)


def test_differences_within_the_tolerance_are_accepted() -> None:
    reference = Reference(np.zeros((2, 4)), np.array([[0.5, 0.5, 0.0], [0.7, 0.3, 0.0]]), "inputs")
    near = compare(predicting([[0.4999, 0.5001, 0.0], [0.7, 0.3, 0.0]]), [], reference, 1e-3, FILE)  # a tie, reversed
    assert (near.rows, near.of, near.tolerance) == (2, "inputs", 1e-3)
    assert near.greatest_difference == pytest.approx(1e-4)
    close = replace(reference, expected=np.array([[0.5005, 0.4995, 0.0], [0.7, 0.3, 0.0]]))
    with pytest.raises(
        ExportError, match=r"differs from the run by 0\.0006 in probability, and by a factor of 1, on 2 inputs"
    ):  # close, but another top class
        compare(predicting([[0.4999, 0.5001, 0.0], [0.7, 0.3, 0.0]]), [], close, 7e-4, FILE)
    with pytest.raises(ExportError, match=r"differs from the run by 0\.1 "):
        compare(predicting([[0.5, 0.5, 0.0], [0.8, 0.2, 0.0]]), [], reference, 1e-3, FILE)
    with pytest.raises(ExportError, match="differs from the run by nan"):
        compare(predicting([[0.5, 0.5, 0.0], [np.nan, 0.3, 0.0]]), [], reference, 1e-3, FILE)
    with pytest.raises(ExportError, match=r"gives \(2, 2\), expected \(2, 3\)"):
        compare(predicting([[0.5, 0.5], [0.7, 0.3]]), [], reference, 1e-3, FILE)


def test_a_wrong_logit_is_found_if_one_class_is_almost_certain() -> None:
    expected = np.array([[1 - 1e-9, 1e-9, 1e-35]])
    reference = Reference(np.zeros((1, 4)), expected, "inputs")
    assert compare(predicting((expected * [1, 1.0009, 0]).tolist()), [], reference, 1e-5, FILE).rows == 1
    with pytest.raises(ExportError, match=r"differs from the run by 1e-09 in probability, and by a factor of 2, on 1"):
        compare(predicting((expected * [1, 2, 1]).tolist()), [], reference, 1e-5, FILE)


def test_the_tolerance_grows_with_the_scale(run: Path) -> None:
    classifier = read_classifier(run)
    assert tolerance_at(1e-5, replace(classifier, temperature=2.0)) == 1e-5
    assert tolerance_at(1e-5, replace(classifier, temperature=0.25)) == pytest.approx(4e-5)


def test_a_small_difference_is_found_if_top_class_and_ratios_are_right() -> None:
    expected = np.array([[0.6, 0.4], [0.5, 0.5]])
    reference = Reference(np.zeros((2, 1), np.float32), expected, "rows")

    def compared_with(found: np.ndarray) -> Comparison:
        return compare(lambda _files, _inputs: found, [], reference, 1e-4, FILE)

    assert compared_with(expected + 9e-5 * np.array([1, -1])).greatest_difference == pytest.approx(9e-5)
    with pytest.raises(ExportError, match=r"differs from the run by 0\.0003 in probability, and by a factor of 1"):
        compared_with(expected + 3e-4 * np.array([1, -1]))
