"""Summaries over seeds."""

import statistics
from pathlib import Path

import pytest

from taskres_cache.runs.results import FitResults, summarise
from taskres_cache.runs.run import Run
from tests.conftest import metrics_of


def test_summaries_are_means_and_deviations_over_seeds() -> None:
    numbers = ((16, 1, 80.0), (1, 1, 60.0), (16, 2, 83.0), (16, 3, 89.0))
    table = summarise(metrics_of(shots=shots, seed=seed, test_accuracy=test) for shots, seed, test in numbers)
    assert [(row.shots, row.seeds) for row in table] == [(1, (1,)), (16, (1, 2, 3))]
    assert (table[0].mean_test_accuracy, table[0].std_test_accuracy) == (60.0, None)
    assert table[1].mean_test_accuracy == 84.0
    assert table[1].std_test_accuracy == pytest.approx(21**0.5)  # (16 + 1 + 25) / 2
    assert table[1].std_test_accuracy == pytest.approx(statistics.stdev([80, 83, 89]))


def test_the_text_of_results_has_no_escape_sequence() -> None:
    results = FitResults((Run(Path("run"), metrics_of(method="\x1b[2Jmine\n")),))
    assert repr(results).isprintable() is False  # its own line break
    assert all(line.isprintable() for line in repr(results).split("\n"))
    assert "\\x1b[2Jmine\\n" in repr(results)
