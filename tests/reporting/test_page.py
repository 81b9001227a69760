"""What the page shows for known numbers: bars, cells, facts."""

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskres_cache.caches.provenance import Provenance
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.analysis import Analysis, ClassGain
from taskres_cache.reporting.page import as_page
from taskres_cache.reporting.studies import Study
from taskres_cache.runs.classifier import ResidualClassifier
from taskres_cache.runs.metrics import ImageCounts, Seconds
from taskres_cache.runs.results import summarise
from taskres_cache.runs.run import Run
from taskres_cache.runs.scores import reliability
from tests.conftest import metrics_of


def run(shots: int, seed: int, test: float) -> Run:
    accuracies = {"zero_shot_accuracy": 60.0, "base_accuracy": 60.0, "val_accuracy": 50.0, "test_accuracy": test}
    metrics = metrics_of(shots=shots, seed=seed, **accuracies, seconds=Seconds(fit=0.25), images=ImageCounts(test=1200))
    return Run(Path("runs") / str(seed), metrics)


def analysis_of(provenance: Provenance, gains: list[ClassGain], confusion: np.ndarray) -> Analysis:
    names = tuple(gain.name for gain in gains)
    weights = np.ones((len(names), 2), np.float32)
    recipe = Recipe(alpha=2.0, lr=0.01)
    classifier = ResidualClassifier(
        base=weights,
        residual=weights,
        classnames=names,
        templates=("a {}.",),
        alpha=2.0,
        recipe=recipe,
        shots=16,
        seed=1,
        provenance=provenance,
    )
    nothing = reliability(np.array([0.5]), np.array([True]))
    return Analysis(classifier, (1,), "the only one", 10, tuple(gains), confusion, (), (), nothing, nothing, (1.0,))


def page_of(analysis: Analysis | None) -> str:
    runs = (run(1, 1, 70.0), run(16, 1, 80.0), run(16, 2, 82.0))
    summaries = tuple(summarise(one.metrics for one in runs))
    study = Study("toy", "tower", "random", "all", runs, summaries, (), analysis)
    return as_page([study], "A title", None, datetime(2026, 11, 24))


def test_gains_share_one_scale(provenance: Provenance) -> None:
    gains = [ClassGain("up", 5, 50.0, 80.0), ClassGain("down", 5, 50.0, 40.0), ClassGain("still", 5, 50.0, 50.0)]
    page = page_of(analysis_of(provenance, gains, np.eye(3)))
    # From -10 to +30, zero is at 25 %; a bar to the left ends there.
    assert "--zero-at: 25.00%" in page
    bars = re.findall(
        r'title="(\w+)">.*?class="bar (\w+)" style="left: ([\d.]+)%; width: ([\d.]+)%".*?<b>(.*?)</b>', page
    )
    assert bars == [
        ("up", "up", "25.00", "75.00", "+30.00"),
        ("still", "none", "25.00", "0.00", "+0.00"),
        ("down", "down", "0.00", "25.00", "-10.00"),
    ]
    assert "50.00 → 80.00" in page


def test_the_largest_and_smallest_gains_of_many_classes_are_drawn(provenance: Provenance) -> None:
    gains = [ClassGain(f"c{number:03}", 1, 0.0, float(number)) for number in range(100)]
    page = page_of(analysis_of(provenance, gains, np.eye(100)))
    drawn = re.findall(r'class="name" title="(\w+)"', page)
    assert drawn == [f"c{number:03}" for number in (*range(99, 87, -1), *range(11, -1, -1))]
    assert "76 more classes" in page
    assert "All 100 classes" in page
    assert "c050" in page  # in the table of all


def test_cells_are_percent_of_the_true_class(provenance: Provenance) -> None:
    gains = [ClassGain(name, 8, 50.0, 50.0) for name in ("jay", "owl")]
    page = page_of(analysis_of(provenance, gains, np.array([[6.0, 2.0], [0.0, 5.0]])))
    cells = re.findall(r'<td(?: class="([\w ]+)" style="--share: ([\d.]+)")? title="(.*?)">(.*?)</td>', page)
    assert cells == [
        ("hit deep", "75.0", "jay predicted as jay: 75.00 %", "75"),
        ("miss", "25.0", "jay predicted as owl: 25.00 %", "25"),
        ("", "", "owl predicted as jay: 0.00 %", ""),
        ("hit deep", "100.0", "owl predicted as owl: 100.00 %", "100"),
    ]


def test_the_most_confused_of_many_classes_are_drawn(provenance: Provenance) -> None:
    confusion = 10.0 * np.eye(60)
    confusion[7, 41], confusion[50, 3] = 4.0, 2.0
    gains = [ClassGain(f"c{number:02}", 10, 50.0, 50.0) for number in range(60)]
    page = page_of(analysis_of(provenance, gains, confusion))
    assert re.findall(r'<th scope="row" title="(\w+)"', page) == ["c03", "c07", "c41", "c50"]
    assert "Only the 4 most confused of 60 classes" in page


def test_key_facts_are_of_the_most_shots(provenance: Provenance) -> None:
    page = page_of(None)
    facts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>(.*?)</small>", page)
    assert facts[:3] == [
        ("zero-shot", "60.00 %", "text classifier alone"),
        ("16 shots", "81.00 %", "± 1.41 over 2 seeds"),
        ("gain", "+21.00", "points over zero-shot"),
    ]
    assert ("fit time", "0.25 s", "3 runs in this study") in facts
    assert "24 November 2026" in page
    assert "3 fits on cached features, 0.8 s of training in total." in page


def test_deviations_from_the_paper_are_marked(provenance: Provenance) -> None:
    named = replace(provenance, split="given, by <us>")
    page = page_of(analysis_of(named, [ClassGain(n, 1, 0.0, 0.0) for n in ("jay", "owl")], np.eye(2)))
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd(.*?)</dd>", page))
    assert facts["alpha"] == ' class="changed">2'
    assert facts["optimiser"] == ' class="changed">Adam, learning rate 0.01, weight decay 0.0005, batch size 256'
    assert facts["base"] == ">regular"
    assert facts["length"] == ">200 epochs"
    assert facts["split"] == ">given, by &lt;us&gt;"


@pytest.mark.parametrize("missing", [{"seconds": Seconds()}, {"images": ImageCounts()}, {"val_accuracy": None}])
def test_runs_of_earlier_versions_are_shown(missing: dict[str, Any]) -> None:
    complete = (run(1, 1, 70.0), run(16, 1, 80.0))
    runs = tuple(replace(one, metrics=replace(one.metrics, **missing)) for one in complete)
    study = Study(
        "toy", "tower", "random", "all", runs, tuple(summarise(one.metrics for one in runs)), (), None, "gone"
    )
    assert "80.00 %" in as_page([study], "t", None, datetime(2026, 1, 1))
