"""Studies: what is fitted, measured and written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from taskres_cache.caches.contents import CacheContents
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import CacheError, OptionError, StorageError
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe
from taskres_cache.runs.fitting.study import finished_runs, fit_each, recipe_of
from taskres_cache.runs.metrics import ImageCounts
from taskres_cache.runs.results import summarise
from taskres_cache.runs.run import Run, read_classifier, read_metrics
from tests.by_hand import accuracy
from tests.runs.conftest import CPU, RECIPE, SPLITS


def test_a_run_folder_contains_classifier_and_metrics(study: list[Run], tmp_path: Path) -> None:
    method = "taskres-regular-lr0.02-epochs30"
    run = study[2]
    assert run.folder == tmp_path / "runs" / "tower-random" / "toy" / method / "shots_4" / "seed_1"
    assert sorted(path.name for path in run.folder.iterdir()) == ["classifier.safetensors", "metrics.json"]
    assert json.loads((run.folder / "metrics.json").read_text()) == run.metrics.to_json()
    assert read_metrics(run.folder) == run.metrics


def test_accuracies_are_those_of_the_stored_classifier(study: list[Run], contents: CacheContents) -> None:
    base = contents.text.embeddings.mean(axis=1)
    test, val = slice(15, 24), contents.splits[4, 1].val
    run = next(run for run in study if (run.metrics.shots, run.metrics.seed) == (4, 1))
    tensors = load_file(run.folder / "classifier.safetensors")
    weights = tensors["base"] + 0.5 * tensors["residual"]
    features, labels = contents.image_features, contents.labels
    assert np.array_equal(tensors["base"], base)
    assert np.abs(tensors["residual"]).max() > 0.01
    assert run.metrics.zero_shot_accuracy == pytest.approx(accuracy(features[test], base, labels[test]))
    assert run.metrics.test_accuracy == pytest.approx(accuracy(features[test], weights, labels[test]))
    assert run.metrics.val_accuracy == pytest.approx(accuracy(features[val], weights, labels[val]))
    assert run.metrics.zero_shot_accuracy < 100  # at 100 the comparison would prove little


def test_metrics_record_how_the_run_was_made(study: list[Run], cache: FeatureCache) -> None:
    metrics = study[0].metrics
    assert metrics.recipe == RECIPE
    assert metrics.epochs == 30
    assert len(metrics.epoch_losses) == 30
    assert metrics.images == ImageCounts(train=3, val=3, test=9)
    assert metrics.weights_sha256 == cache.provenance.weights_sha256
    assert metrics.seconds.base == 0.0
    assert metrics.seconds.fit is not None
    assert metrics.seconds.evaluate is not None
    assert min(metrics.seconds.fit, metrics.seconds.evaluate) > 0
    assert "torch" in metrics.versions


def test_a_fit_in_a_study_equals_the_fit_alone(study: list[Run], contents: CacheContents) -> None:
    rows = contents.splits[4, 2].train
    training = TrainingSet.from_features(contents.image_features[rows], contents.labels[rows])
    base = contents.text.embeddings.mean(axis=1)
    (alone,) = fit_residuals([FitTask(training, RECIPE, 30, 2, base=base)], 100.0, CPU)
    residual = read_classifier(study[3].folder).residual
    assert np.abs(residual - alone.residual).max() <= 1e-5 * np.abs(alone.residual).max()


@pytest.fixture
def with_views(contents: CacheContents, tmp_path: Path) -> tuple[FeatureCache, np.ndarray]:
    """The same cache with three augmented views of each train image, and those views."""
    noise = np.random.default_rng(11).normal(scale=0.7, size=(12, 3, 8))
    views = (contents.image_features[:12, None] + noise).astype(np.float32)
    path = tmp_path / "cache" / "tower-random" / "views.h5"
    write_cache(path, replace(contents, augmented=views, augmented_rows=np.arange(12)))
    return FeatureCache(path), views


def fitted_residual(cache: FeatureCache, recipe: Recipe, out: Path) -> np.ndarray:
    (run,) = fit_each(cache, [(4, 2)], [recipe], CPU, out)
    return read_classifier(run.folder).residual


def test_fits_use_the_views_of_a_cache(
    with_views: tuple[FeatureCache, np.ndarray], contents: CacheContents, tmp_path: Path
) -> None:
    cache, views = with_views
    rows, base = contents.splits[4, 2].train, contents.text.embeddings.mean(axis=1)
    labels = contents.labels[rows]
    expected = {
        ("walk", 3): TrainingSet.from_views(views[rows].swapaxes(0, 1), labels),
        ("walk", 2): TrainingSet.from_views(views[rows, :2].swapaxes(0, 1), labels),
        ("average", 2): TrainingSet.from_features(views[rows, :2].mean(axis=1), labels),  # of un-normalised features
    }
    for (use, count), training in expected.items():
        recipe = RECIPE.changed(views=count, view_use=use)
        (alone,) = fit_residuals([FitTask(training, recipe, 30, 2, base=base)], 100.0, CPU)
        residual = fitted_residual(cache, recipe, tmp_path / "runs")
        assert np.abs(residual - alone.residual).max() <= 1e-5 * np.abs(alone.residual).max()
    assert recipe_of(cache).views == 3  # the default
    assert recipe_of(cache, views=0).views == 0
    names = sorted(folder.name for folder in (tmp_path / "runs" / "tower-random" / "toy").iterdir())
    plain = "taskres-regular-lr0.02-epochs30"
    assert names == [f"{plain}-views2", f"{plain}-views2-average", f"{plain}-views3"]


def test_missing_views_raise(with_views: tuple[FeatureCache, np.ndarray], cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has 3 augmented views of .*, expected 4; add them: .*--views 4"):
        list(fit_each(with_views[0], [(4, 2)], [RECIPE.changed(views=4)], CPU, tmp_path))
    with pytest.raises(OptionError, match="has no augmented views of its train images, expected 1"):
        list(fit_each(cache, [(4, 2)], [RECIPE.changed(views=1)], CPU, tmp_path))


def test_test_features_cannot_change_a_fit(cache: FeatureCache, contents: CacheContents, tmp_path: Path) -> None:
    poisoned = contents.image_features.copy()
    poisoned[15:] = np.random.default_rng(1).normal(size=(9, 8))
    write_cache(tmp_path / "poisoned.h5", replace(contents, image_features=poisoned))
    runs = [
        next(iter(fit_each(source, [(4, 1)], [RECIPE], CPU, tmp_path / name)))
        for name, source in (("a", cache), ("b", FeatureCache(tmp_path / "poisoned.h5")))
    ]
    first, second = (read_classifier(run.folder).residual for run in runs)
    assert np.array_equal(first, second)
    assert runs[0].metrics.test_accuracy != runs[1].metrics.test_accuracy


def test_finished_runs_have_the_same_inputs(
    contents: CacheContents, cache: FeatureCache, study: list[Run], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    assert list(finished_runs(cache, SPLITS, RECIPE, runs)) == SPLITS
    assert finished_runs(cache, SPLITS, RECIPE.changed(weight_decay=0.0), runs) == {}
    (study[3].folder / "metrics.json").unlink()
    assert list(finished_runs(cache, SPLITS, RECIPE, runs)) == SPLITS[:3]

    def finished_after_changing(row: int) -> list[tuple[int, int]]:
        features = contents.image_features.copy()
        features[row] += 1
        write_cache(cache.path, replace(contents, image_features=features))
        return list(finished_runs(FeatureCache(cache.path), SPLITS, RECIPE, runs))

    assert finished_after_changing(5) == [(1, 2)]  # a training image of the first split and of those with four shots
    assert finished_after_changing(20) == []  # a test image
    write_cache(cache.path, contents)
    assert list(finished_runs(FeatureCache(cache.path), SPLITS, RECIPE, runs)) == SPLITS[:3]


def test_a_missing_split_raises_before_anything_is_fitted(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no split with 16 shots and seed 1"):
        list(fit_each(cache, [(1, 1), (16, 1)], [RECIPE], CPU, tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_cache_without_test_images_raises_before_anything_is_fitted(contents: CacheContents, tmp_path: Path) -> None:
    rows = slice(0, 15)
    some = {name: getattr(contents, name)[rows] for name in ("paths", "stamps", "labels", "partitions")}
    write_cache(tmp_path / "few.h5", replace(contents, **some, image_features=contents.image_features[rows]))
    with pytest.raises(CacheError, match=r"few\.h5 has no test images to measure a fit on; fix the images"):
        list(fit_each(FeatureCache(tmp_path / "few.h5"), [(1, 1)], [Recipe(epochs=1)], CPU, tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_not_writable_raises(cache: FeatureCache, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        list(fit_each(cache, [(1, 1)], [RECIPE], CPU, tmp_path / "file"))


def test_given_fields_replace_those_of_the_caches_recipe(contents: CacheContents, tmp_path: Path) -> None:
    recorded = replace(contents.provenance, recipe=Recipe(alpha=1.0, lr=0.01).as_dict())
    write_cache(tmp_path / "own.h5", replace(contents, provenance=recorded))
    cache = FeatureCache(tmp_path / "own.h5")
    assert recipe_of(cache) == Recipe(alpha=1.0, lr=0.01)
    assert recipe_of(cache, alpha=0.25, lr=None) == Recipe(alpha=0.25, lr=0.01)


def test_a_recipe_of_a_newer_version_raises(contents: CacheContents, tmp_path: Path) -> None:
    newer = replace(contents.provenance, recipe={"alpha": 1.0, "beta": 2.0})
    write_cache(tmp_path / "newer.h5", replace(contents, provenance=newer))
    with pytest.raises(CacheError, match="newer version .*beta.*upgrade"):
        recipe_of(FeatureCache(tmp_path / "newer.h5"))


def test_without_validation_images_there_is_no_validation_accuracy(contents: CacheContents, tmp_path: Path) -> None:
    no_val = {name: replace(split, val=np.array([], np.int64)) for name, split in contents.splits.items()}
    write_cache(tmp_path / "no-val.h5", replace(contents, splits=no_val))
    (run,) = fit_each(FeatureCache(tmp_path / "no-val.h5"), [(4, 1)], [RECIPE], CPU, tmp_path / "runs")
    assert run.metrics.val_accuracy is None
    assert summarise([run.metrics])[0].mean_val_accuracy is None
