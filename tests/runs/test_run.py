"""Run folders: their files, finding them and their cache, and damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import RunError
from taskres_cache.runs.finding import find_runs
from taskres_cache.runs.run import Run, own_cache, read_classifier, read_metrics
from tests.runs.conftest import RECIPE


def test_the_classifier_file_contains_everything_to_use_it(study: list[Run], cache: FeatureCache) -> None:
    with safe_open(study[0].folder / "classifier.safetensors", framework="numpy") as stored:
        metadata = stored.metadata()
        assert {name: str(stored.get_tensor(name).dtype) for name in stored.keys()} == {  # noqa: SIM118
            "base": "float32",
            "residual": "float32",
        }
    assert json.loads(metadata["classnames"]) == ["black_cat", "dog", "été"]
    assert json.loads(metadata["alpha"]) == 0.5
    assert json.loads(metadata["logit_scale"]) == 100.0
    assert json.loads(metadata["recipe"]) == RECIPE.as_dict()
    assert (metadata["dataset"], metadata["backbone"], metadata["pretrained"]) == ("toy", "tower", "random")
    assert metadata["weights_sha256"] == cache.provenance.weights_sha256


def test_a_run_finds_its_cache(study: list[Run], cache: FeatureCache, tmp_path: Path) -> None:
    folder = study[0].folder
    classifier = read_classifier(folder)
    assert own_cache(folder, classifier, tmp_path / "elsewhere") == cache.path
    moved = tmp_path / "moved"
    (tmp_path / "cache").rename(moved)
    assert own_cache(folder, classifier, moved) == moved / "tower-random" / "toy.h5"


def test_runs_are_found_at_and_below_a_path(study: list[Run], tmp_path: Path) -> None:
    assert len(find_runs(tmp_path / "runs")) == 4
    assert find_runs(study[0].folder) == [study[0].folder]
    assert find_runs(study[0].folder / "classifier.safetensors") == [study[0].folder]
    with pytest.raises(RunError, match="no classifier.safetensors at or below"):
        find_runs(tmp_path / "cache")


def test_runs_are_sorted_by_number(study: list[Run]) -> None:
    method = study[0].folder.parent.parent
    (method / "shots_1").rename(method / "shots_16")
    assert [folder.parent.name for folder in find_runs(method)] == ["shots_4", "shots_4", "shots_16", "shots_16"]


def test_damaged_runs_raise(study: list[Run]) -> None:
    folder = study[0].folder
    file = folder / "classifier.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="not an intact run"):
        read_classifier(folder)
    save_file({"base": np.zeros((2, 2), np.float32)}, file)
    with pytest.raises(RunError, match="not an intact run"):
        read_classifier(folder)
    (folder / "metrics.json").write_text("{")
    with pytest.raises(RunError, match="could not read .*metrics.json"):
        read_metrics(folder)
