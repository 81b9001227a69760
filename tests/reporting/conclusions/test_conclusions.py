"""The table of all classifiers and the sentences below it, against numbers computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from taskres_cache.datasets.sampling import ALL_SHOTS
from taskres_cache.reporting.conclusions.conclusion import conclude
from taskres_cache.reporting.conclusions.standings import (
    LOGISTIC_REGRESSION,
    ZERO_SHOT,
    Standing,
    standings,
    standings_table,
)
from taskres_cache.reporting.conclusions.verdict import gained, spoken_of, verdicts
from taskres_cache.runs.run import Run
from taskres_cache.runs.scores import ImageHits
from taskres_cache.runs.statistics.intervals import Hits
from tests.conftest import Taskres, metrics_of

LABELS = np.repeat([0, 1], 50)


def first(count: int) -> np.ndarray:
    """The first images are correct: of two such classifiers, only one is right where they differ."""
    return np.arange(100) < count


def standing(correct: int, zero_shot: int, shots: int = 16, name: str = "auto") -> Standing:
    return Standing(name, shots, (1,), LABELS, Hits.of_fits([first(correct)]), Hits.of_fits([first(zero_shot)]))


def test_a_gain_beyond_chance() -> None:
    # 10 images only by auto: p = 2 / 2^10 = 0.00195. Wilson of 95 of 100: 88.8 to 97.8.
    assert gained(standing(95, 85, ALL_SHOTS)) == (
        "auto with all labels: 95.0 % (88.8 to 97.8), 10.0 points above zero-shot; the difference is more than chance "
        "(p = 0.002)"
    )
    assert gained(standing(95, 60)).endswith("(p < 0.001)")


def test_a_gain_that_may_be_chance() -> None:
    # 3 images only by auto: p = 2 / 2^3
    assert gained(standing(95, 92, 1)) == (
        "auto with 1 shot: 95.0 % (88.8 to 97.8), 3.0 points above zero-shot, which may be chance (p = 0.25): add "
        "labels"
    )
    assert "3.0 points below zero-shot, which may be chance" in gained(standing(92, 95))
    assert "as accurate as zero-shot" in gained(standing(92, 92))


def test_zero_shot_is_better() -> None:
    assert gained(standing(85, 95)) == (
        "warning: auto with 16 shots: 85.0 % (76.7 to 90.7); zero-shot is better by 10.0 points, more than chance "
        "(p = 0.002): use it, or add labels"
    )


def test_logistic_regression_is_compared_on_the_same_images() -> None:
    found = [standing(95, 85), standing(89, 85, name=LOGISTIC_REGRESSION), standing(70, 85, 8, LOGISTIC_REGRESSION)]
    assert verdicts(found, "auto")[1:] == ["logistic regression: 89.0 %, 6.0 points less, more than chance (p = 0.031)"]
    found = [standing(95, 85), standing(97, 85, name="linear-probe-val-full")]
    assert verdicts(found, "auto")[1:] == [
        "logistic regression: 97.0 %, 2.0 points more, which may be chance (p = 0.50)"
    ]
    assert len(verdicts(found, "linear-probe-val-full")) == 1


def test_shots_at_which_zero_shot_is_better_are_named() -> None:
    found = [standing(70, 85, 1), standing(75, 85, 2), standing(84, 85, 4), standing(95, 85)]
    assert verdicts(found, "auto")[1:] == [
        "warning: with 1 shot, 2 shots, zero-shot is better by 15.0, 10.0 points: use it there"
    ]
    assert len(verdicts(found[:3], "auto")) == 2
    assert verdicts([], "auto") == []


def run_of(method: str, shots: int, seed: int, correct: int, val: float | None = None) -> Run:
    metrics = metrics_of(method=method, shots=shots, seed=seed, val_accuracy=val)
    return Run(Path(method), metrics, tested=ImageHits(LABELS, first(correct), first(60)))


def test_the_table_has_zero_shot_then_each_shot_count_over_its_seeds() -> None:
    runs = [run_of("b", 16, 1, 90), run_of("b", 16, 2, 80), run_of("a", 4, 1, 70), run_of("a", 16, 1, 95)]
    logistic = {(4, 1): ImageHits(LABELS, first(50), first(60))}
    found = standings(runs, logistic)
    assert [(one.classifier, one.shots, one.seeds) for one in found] == [
        (ZERO_SHOT, 0, ()),
        (LOGISTIC_REGRESSION, 4, (1,)),
        ("a", 4, (1,)),
        ("b", 16, (1, 2)),
        ("a", 16, (1,)),
    ]
    rows = standings_table(found, "toy").rows
    wilson = binomtest(60, 100).proportion_ci(method="wilson")
    assert rows[0] == (ZERO_SHOT, "-", "60.0", f"{100 * wilson.low:.1f} to {100 * wilson.high:.1f}", "60.0", "-")
    assert [(row[0], row[1], row[2], row[4], row[5]) for row in rows[1:]] == [
        (LOGISTIC_REGRESSION, "4", "50.0", "50.0", "-10.00"),
        ("a", "4", "70.0", "70.0", "+10.00"),
        ("b", "16", "85.0", "85.0", "+25.00"),
        ("a", "16", "95.0", "95.0", "+35.00"),
    ]


def test_the_sentence_is_about_the_best_by_validation_never_by_test() -> None:
    runs = [run_of("best-by-test", 16, 1, 99, val=80.0), run_of("best-by-val", 16, 1, 90, val=90.0)]
    assert conclude(runs).sentences[0].startswith("best-by-val with 16 shots: 90.0 %")
    assert spoken_of({"best-by-test": None, "best-by-val": 90.0}) == "best-by-test"  # no val: the first


def test_runs_that_were_read_have_no_rows() -> None:
    read = Run(Path("x"), metrics_of())
    assert standings([read]) == []
    assert conclude([read]).sentences == ()


@pytest.fixture
def fitted(taskres: Taskres, cache_file: Path, here: Path) -> dict:
    outcome = taskres("fit", cache_file, "--shots", "1,4", "--seeds", "1,2", "--json")
    assert outcome.status == 0, outcome.err
    found: dict = json.loads(outcome.out)
    return found


def test_json_has_baselines_and_intervals(fitted: dict) -> None:
    rows = {(one["classifier"], one["shots"]): one for one in fitted["baselines"]}
    assert list(rows) == [("zero-shot", 0), ("logistic regression", 1), ("logistic regression", 4)]
    assert rows["zero-shot", 0]["accuracy"] == pytest.approx(fitted["runs"][0]["zero_shot_accuracy"])
    for summary in fitted["summary"]:
        low, high = summary["accuracy_interval"]
        assert low <= summary["mean_test_accuracy"] <= high
        assert summary["accuracy"] == pytest.approx(summary["mean_test_accuracy"])
    assert "zero-shot" in fitted["conclusion"][0]


def test_logistic_regression_is_the_method_and_leaves_no_run(
    taskres: Taskres, fitted: dict, cache_file: Path, here: Path
) -> None:
    assert list(here.rglob("linear-probe*")) == []
    outcome = taskres("fit", cache_file, "--shots", "1,4", "--seeds", "1,2", "--method", "linear-probe", "--json")
    asked = json.loads(outcome.out)
    of_baseline = [one["accuracy"] for one in fitted["baselines"] if one["classifier"] == LOGISTIC_REGRESSION]
    assert [one["mean_test_accuracy"] for one in asked["summary"]] == pytest.approx(of_baseline)
    assert [one["classifier"] for one in asked["baselines"]] == [ZERO_SHOT]
    assert len(asked["conclusion"]) <= 2


def test_a_fit_prints_the_table_and_the_sentence(taskres: Taskres, cache_file: Path, here: Path) -> None:
    outcome = taskres("fit", cache_file, "--shots", "4")
    assert "all on the same" in outcome.out
    lines = outcome.out.splitlines()
    assert any(line.startswith("logistic regression") and " to " in line for line in lines)
    assert any("with 4 shots: " in line and "zero-shot" in line for line in lines[-3:])


def test_a_long_logistic_regression_is_left_out_with_its_command(
    taskres: Taskres, cache_file: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.runs.fitting.baselines import logistic_regression
    from tests.runs.conftest import CPU

    cache = FeatureCache(cache_file)
    images = len(cache.split(1, 1).train)
    enough = 2 * images * len(cache.classnames) * cache.dim  # for both seeds of one shot, not for four
    found = logistic_regression(cache, [(4, 1), (1, 1), (1, 2)], CPU, most_work=enough)
    assert (list(found.tested), found.left_out) == ([(1, 1), (1, 2)], (4,))
    monkeypatch.setattr("taskres_cache.runs.fitting.baselines.MOST_WORK", 0.0)
    outcome = taskres("fit", cache_file, "--shots", "4", "--seeds", "1,2")
    assert "left out at 4 shots" in outcome.err
    assert f"taskres fit {cache_file} --shots 4 --seeds 1,2 --method linear-probe" in outcome.err
    assert "logistic regression" not in outcome.out
