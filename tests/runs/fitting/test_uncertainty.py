"""What a fit records about the uncertainty of its accuracies, compared with its predictions."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.methods.choice import MethodChoice
from taskres_cache.methods.registry import find_method
from taskres_cache.runs.class_matching import text_head
from taskres_cache.runs.evaluation import predictions_of
from taskres_cache.runs.fitting.method_study import fit_methods
from taskres_cache.runs.metrics import DIGEST, Metrics
from taskres_cache.runs.run import Run, read_metrics
from tests.conftest import metrics_of
from tests.runs.conftest import CPU


def check(run: Run, cache: FeatureCache) -> None:
    """Compare the intervals of a run with those of its predictions, made again."""
    predictions = predictions_of(cache, cache.rows("test"), [text_head(cache), run.classifier.head], CPU)
    assert predictions is not None
    zero_shot, adapted = predictions
    metrics = read_metrics(run.folder)
    right, images = int(adapted.correct.sum()), len(adapted.labels)
    wilson = binomtest(right, images).proportion_ci(method="wilson")
    assert metrics.accuracy_interval == pytest.approx((100 * wilson.low, 100 * wilson.high))
    known = [one for one in metrics.class_accuracies or () if one is not None]
    assert metrics.mean_class_accuracy == pytest.approx(np.mean(known))
    assert metrics.mean_class_accuracy_interval is not None
    low, high = metrics.mean_class_accuracy_interval
    assert low <= np.mean(known) <= high
    against = metrics.against_zero_shot
    assert against is not None
    assert against.difference == pytest.approx(metrics.test_accuracy - metrics.zero_shot_accuracy)
    more, fewer = (
        int(one.sum()) for one in (adapted.correct & ~zero_shot.correct, zero_shot.correct & ~adapted.correct)
    )
    assert against.p_value == pytest.approx(binomtest(more, more + fewer).pvalue if more + fewer else 1.0)
    assert run.tested is not None
    assert run.tested.correct.tolist() == adapted.correct.tolist()
    assert run.tested.zero_shot_correct.tolist() == zero_shot.correct.tolist()


def test_a_task_residual_records_intervals(study: list[Run], cache: FeatureCache) -> None:
    for run in study:
        check(run, cache)


def test_another_method_records_intervals(cache: FeatureCache, tmp_path) -> None:
    method = find_method("linear-probe").method
    (run,) = fit_methods(cache, [(4, 1)], [MethodChoice(method, method.options)], CPU, tmp_path / "runs")
    check(run, cache)


def test_runs_of_earlier_versions_have_no_intervals_and_keep_their_text() -> None:
    plain = metrics_of().to_json()
    assert not {"accuracy_interval", "mean_class_accuracy", "against_zero_shot"} & set(plain)
    assert Metrics.from_json(json.dumps(plain).encode()).accuracy_interval is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"accuracy_interval": [90.0]},
        {"accuracy_interval": [90.0, 101.0]},
        {"against_zero_shot": {"difference": 2.0, "interval": [1.0, 3.0]}},
        {"against_zero_shot": {"difference": 2.0, "interval": [1.0, 3.0], "p_value": 1.5}},
    ],
)
def test_intervals_that_no_fit_writes_are_refused(wrong: dict) -> None:
    plain = {name: value for name, value in metrics_of().to_json().items() if name not in (DIGEST, "classifier_sha256")}
    with pytest.raises(ValueError, match="wrong or missing field"):
        Metrics.from_json(json.dumps(plain | wrong).encode())


def test_what_is_kept_in_memory_does_not_tell_runs_apart(study: list[Run]) -> None:
    assert replace(study[0], tested=None) == study[0]
