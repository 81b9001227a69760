"""What counts as saying the same: differences by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import ExportError
from taskres_cache.exporting import comparison
from taskres_cache.exporting.comparison import Trial, compared, tolerance_at
from taskres_cache.runs.run import read_classifier
from tests.exporting.exported import fitted


@pytest.fixture
def run(cache_file: Path, tmp_path: Path) -> Path:
    return fitted(FeatureCache(cache_file), tmp_path / "runs")


def asked(found: list[list[float]]) -> comparison.Ask:
    return lambda _files, _inputs: np.array(found)


def test_what_counts_as_agreement() -> None:
    trial = Trial(np.zeros((2, 4)), np.array([[0.5, 0.5, 0.0], [0.7, 0.3, 0.0]]), "inputs")
    file = Path("head.onnx")
    near = compared(asked([[0.4999, 0.5001, 0.0], [0.7, 0.3, 0.0]]), [], trial, 1e-3, file)  # a tie falls either way
    assert (near.rows, near.of, near.tolerance) == (2, "inputs", 1e-3)
    assert near.greatest_difference == pytest.approx(1e-4)
    close = replace(trial, expected=np.array([[0.5005, 0.4995, 0.0], [0.7, 0.3, 0.0]]))
    with pytest.raises(
        ExportError, match=r"differs from the run by 0\.0006 in probability, and by a factor of 1, on 2 inputs"
    ):
        compared(asked([[0.4999, 0.5001, 0.0], [0.7, 0.3, 0.0]]), [], close, 7e-4, file)  # near, but another class
    with pytest.raises(ExportError, match=r"differs from the run by 0\.1 "):
        compared(asked([[0.5, 0.5, 0.0], [0.8, 0.2, 0.0]]), [], trial, 1e-3, file)
    with pytest.raises(ExportError, match="differs from the run by nan"):
        compared(asked([[0.5, 0.5, 0.0], [np.nan, 0.3, 0.0]]), [], trial, 1e-3, file)
    with pytest.raises(ExportError, match=r"gives \(2, 2\), expected \(2, 3\)"):
        compared(asked([[0.5, 0.5], [0.7, 0.3]]), [], trial, 1e-3, file)


def test_a_wrong_logit_is_found_where_one_class_is_all_but_certain() -> None:
    expected, file = np.array([[1 - 1e-9, 1e-9, 1e-35]]), Path("head.onnx")
    trial = Trial(np.zeros((1, 4)), expected, "inputs")
    assert compared(asked((expected * [1, 1.0009, 0]).tolist()), [], trial, 1e-5, file).rows == 1
    with pytest.raises(ExportError, match=r"differs from the run by 1e-09 in probability, and by a factor of 2, on 1"):
        compared(asked((expected * [1, 2, 1]).tolist()), [], trial, 1e-5, file)


def test_a_high_scale_leaves_more_to_rounding(run: Path) -> None:
    classifier = read_classifier(run)
    assert tolerance_at(1e-5, replace(classifier, temperature=2.0)) == 1e-5
    assert tolerance_at(1e-5, replace(classifier, temperature=0.25)) == pytest.approx(4e-5)


def test_a_small_difference_is_seen_where_the_best_class_and_every_factor_stay() -> None:
    expected = np.array([[0.6, 0.4], [0.5, 0.5]])
    trial = comparison.Trial(np.zeros((2, 1), np.float32), expected, "rows")

    def compared_with(found: np.ndarray) -> comparison.Comparison:
        return comparison.compared(lambda files, inputs: found, [], trial, 1e-4, Path("head.onnx"))

    assert compared_with(expected + 9e-5 * np.array([1, -1])).greatest_difference == pytest.approx(9e-5)
    with pytest.raises(ExportError, match=r"differs from the run by 0\.0003 in probability, and by a factor of 1"):
        compared_with(expected + 3e-4 * np.array([1, -1]))
