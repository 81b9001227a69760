"""Several runs: the best by validation accuracy, and the mean of their probabilities."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import OptionError, RunError
from taskres_cache.runs.run import Run, read_metrics
from taskres_cache.runs.several.choosing import best_run, chosen_runs, read_ensemble
from taskres_cache.runs.several.ensemble import Ensemble


def set_val(run: Run, accuracy: float | None) -> None:
    file = run.folder / "metrics.json"
    file.write_text(json.dumps(replace(read_metrics(run.folder), val_accuracy=accuracy).to_json()))


def test_the_best_run_has_the_highest_validation_accuracy_then_fewer_shots(study: list[Run], tmp_path: Path) -> None:
    for run, accuracy in zip(study, (50.0, 75.0, 75.0, 60.0), strict=True):  # shots 1, 1, 4, 4
        set_val(run, accuracy)
    assert best_run(tmp_path / "runs") == study[1].folder
    set_val(study[3], 80.0)
    assert best_run(tmp_path / "runs") == study[3].folder
    assert best_run(study[0].folder) == study[0].folder
    for run in study:
        set_val(run, None)
    with pytest.raises(RunError, match="no run below .* has a validation accuracy"):
        best_run(tmp_path / "runs")


def test_an_ensemble_predicts_the_mean_probability(study: list[Run], cache: FeatureCache, tmp_path: Path) -> None:
    folders = chosen_runs(tmp_path / "runs", best=False, ensemble=True)
    assert folders == [run.folder for run in study]
    image_features, _ = cache.test()
    by_hand = sum(run.probabilities(image_features).astype(np.float64) for run in study) / 4
    found = read_ensemble(folders).probabilities(image_features, None).numpy()
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    alone = read_ensemble(folders[:1]).probabilities(image_features, None).numpy()
    assert np.array_equal(alone, study[0].probabilities(image_features))


def test_runs_that_do_not_belong_together_are_refused(study: list[Run], tmp_path: Path) -> None:
    one, other = study[0].classifier, study[1].classifier
    with pytest.raises(OptionError, match="different classes"):
        Ensemble((one, replace(other, classnames=("a", "b", "c"))))
    with pytest.raises(OptionError, match="different encoders"):
        Ensemble((one, replace(other, provenance=replace(other.provenance, weights_sha256="cd" * 32))))
    with pytest.raises(OptionError, match="pass --best or --ensemble"):
        chosen_runs(tmp_path / "runs", best=False, ensemble=False)
    with pytest.raises(OptionError, match="one of the two"):
        chosen_runs(tmp_path / "runs", best=True, ensemble=True)
