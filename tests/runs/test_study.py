"""Runs of a study: what they leave, what they measure, and what they are on other caches."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskres_cache.caches.contents import CacheContents, TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import CacheError, OptionError, RunError, StorageError
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe
from taskres_cache.runs.evaluation import class_rows, evaluate_run
from taskres_cache.runs.finding import find_runs
from taskres_cache.runs.metrics import ImageCounts
from taskres_cache.runs.results import summarise
from taskres_cache.runs.run import Run, own_cache, read_classifier, read_metrics
from taskres_cache.runs.study import finished_runs, fit_each, recipe_of
from tests.conftest import metrics_of

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=30, lr=0.02)


@pytest.fixture
def cache(cache_file: Path) -> FeatureCache:
    return FeatureCache(cache_file)


@pytest.fixture
def results(cache: FeatureCache, tmp_path: Path) -> list[Run]:
    return list(fit_each(cache, [(1, 1), (1, 2), (4, 1), (4, 2)], [RECIPE], CPU, tmp_path / "runs"))


def by_hand(weights: np.ndarray, features: np.ndarray, labels: np.ndarray) -> float:
    cosines = (features @ weights.T) / np.linalg.norm(weights, axis=1) / np.linalg.norm(features, axis=1)[:, None]
    return float(100 * (cosines.argmax(1) == labels).mean())


def test_a_run_leaves_its_folder(results: list[Run], tmp_path: Path) -> None:
    method = "taskres-regular-lr0.02-epochs30"
    assert results[2].folder == tmp_path / "runs" / "tower-random" / "toy" / method / "shots_4" / "seed_1"
    assert sorted(path.name for path in results[2].folder.iterdir()) == ["classifier.safetensors", "metrics.json"]
    assert json.loads((results[2].folder / "metrics.json").read_text()) == results[2].metrics.to_json()
    assert read_metrics(results[2].folder) == results[2].metrics


def test_accuracies_are_those_of_the_stored_classifier(results: list[Run], contents: CacheContents) -> None:
    base = contents.text.embeddings.mean(axis=1)
    test, val = slice(15, 24), contents.splits[4, 1].val
    run = next(result for result in results if (result.metrics.shots, result.metrics.seed) == (4, 1))
    tensors = load_file(run.folder / "classifier.safetensors")
    weights = tensors["base"] + 0.5 * tensors["residual"]
    features, labels = contents.image_features, contents.labels
    assert np.array_equal(tensors["base"], base)
    assert np.abs(tensors["residual"]).max() > 0.01
    assert run.metrics.zero_shot_accuracy == pytest.approx(by_hand(base, features[test], labels[test]))
    assert run.metrics.test_accuracy == pytest.approx(by_hand(weights, features[test], labels[test]))
    assert run.metrics.val_accuracy == pytest.approx(by_hand(weights, features[val], labels[val]))
    assert run.metrics.zero_shot_accuracy < 100  # or the comparison would say little


def test_metrics_say_how_it_was_made(results: list[Run], cache: FeatureCache) -> None:
    metrics = results[0].metrics
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


def test_a_run_finds_its_cache_again(results: list[Run], cache: FeatureCache, tmp_path: Path) -> None:
    folder = results[0].folder
    classifier = read_classifier(folder)
    assert own_cache(folder, classifier, tmp_path / "elsewhere") == cache.path
    moved = tmp_path / "moved"
    (tmp_path / "cache").rename(moved)
    assert own_cache(folder, classifier, moved) == moved / "tower-random" / "toy.h5"


def test_a_fit_in_a_study_is_the_fit_alone(results: list[Run], contents: CacheContents) -> None:
    rows = contents.splits[4, 2].train
    training = TrainingSet.from_features(contents.image_features[rows], contents.labels[rows])
    base = contents.text.embeddings.mean(axis=1)
    (alone,) = fit_residuals([FitTask(training, RECIPE, 30, 2, base=base)], 100.0, CPU)
    stored = read_classifier(results[3].folder).residual
    assert np.abs(stored - alone.residual).max() <= 1e-5 * np.abs(alone.residual).max()


@pytest.fixture
def with_views(contents: CacheContents, tmp_path: Path) -> tuple[FeatureCache, np.ndarray]:
    """The same cache with three augmented views of each train image, and those views."""
    noise = np.random.default_rng(11).normal(scale=0.7, size=(12, 3, 8))
    views = (contents.image_features[:12, None] + noise).astype(np.float32)
    path = tmp_path / "cache" / "tower-random" / "views.h5"
    write_cache(path, replace(contents, augmented=views, augmented_rows=np.arange(12)))
    return FeatureCache(path), views


def residual_of(cache: FeatureCache, recipe: Recipe, out: Path) -> np.ndarray:
    (done,) = fit_each(cache, [(4, 2)], [recipe], CPU, out)
    return read_classifier(done.folder).residual


def test_fits_go_round_the_views_of_a_cache(
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
        found = residual_of(cache, recipe, tmp_path / "runs")
        assert np.abs(found - alone.residual).max() <= 1e-5 * np.abs(alone.residual).max()
    assert recipe_of(cache).views == 3  # what a fit takes unless it is told otherwise
    assert recipe_of(cache, views=0).views == 0
    names = sorted(folder.name for folder in (tmp_path / "runs" / "tower-random" / "toy").iterdir())
    plain = "taskres-regular-lr0.02-epochs30"
    assert names == [f"{plain}-views2", f"{plain}-views2-average", f"{plain}-views3"]


def test_views_that_a_cache_has_not_are_refused(
    with_views: tuple[FeatureCache, np.ndarray], cache: FeatureCache, tmp_path: Path
) -> None:
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


def test_zero_shot_is_exactly_a_zero_residual(cache: FeatureCache, results: list[Run]) -> None:
    classifier = read_classifier(results[0].folder)
    still = replace(classifier, residual=np.zeros_like(classifier.residual))
    assert np.array_equal(still.head.weights, classifier.base)
    outcome = evaluate_run(still, cache, CPU)
    assert outcome.test_accuracy == outcome.zero_shot_accuracy == results[0].metrics.zero_shot_accuracy


def test_classifier_file_needs_no_pickle_and_names_everything(results: list[Run], cache: FeatureCache) -> None:
    with safe_open(results[0].folder / "classifier.safetensors", framework="numpy") as stored:
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


def test_evaluating_again_gives_the_same_accuracy(results: list[Run], cache: FeatureCache) -> None:
    for result in results:
        outcome = evaluate_run(read_classifier(result.folder), cache, CPU)
        assert outcome.test_accuracy == result.metrics.test_accuracy
        assert (outcome.images, outcome.classes) == (9, 3)


def test_a_cache_with_fewer_classes_in_another_order(
    results: list[Run], contents: CacheContents, tmp_path: Path
) -> None:
    keep = np.isin(contents.labels, [0, 2])
    text = contents.text.embeddings[[2, 0]]
    some = replace(
        contents,
        classnames=("été", "black_cat"),
        paths=tuple(path for path, kept in zip(contents.paths, keep, strict=True) if kept),
        stamps=tuple(stamp for stamp, kept in zip(contents.stamps, keep, strict=True) if kept),
        labels=np.array([1, -1, 0])[contents.labels[keep]],
        partitions=contents.partitions[keep],
        image_features=contents.image_features[keep],
        text=TextBases(contents.text.templates, text),
        splits={},
    )
    write_cache(tmp_path / "some.h5", some)
    classifier = read_classifier(results[3].folder)
    outcome = evaluate_run(classifier, FeatureCache(tmp_path / "some.h5"), CPU)
    test = some.partitions == 2
    weights = classifier.head.weights.numpy()[[2, 0]]
    assert outcome.test_accuracy == pytest.approx(by_hand(weights, some.image_features[test], some.labels[test]))
    assert (outcome.images, outcome.classes) == (6, 2)


def test_other_checkpoints_and_unknown_classes_are_refused(
    results: list[Run], contents: CacheContents, tmp_path: Path
) -> None:
    classifier = read_classifier(results[0].folder)
    other = replace(contents, provenance=replace(contents.provenance, weights_sha256="ff" * 32))
    write_cache(tmp_path / "other.h5", other)
    with pytest.raises(RunError, match="another checkpoint than the run: weights_sha256"):
        evaluate_run(classifier, FeatureCache(tmp_path / "other.h5"), CPU)
    write_cache(tmp_path / "new.h5", replace(contents, classnames=("black_cat", "dog", "zebra")))
    with pytest.raises(RunError, match="1 of 3 classes that the run does not know .'zebra'."):
        evaluate_run(classifier, FeatureCache(tmp_path / "new.h5"), CPU)


def test_classes_are_matched_by_identifier_where_names_occur_twice(contents: CacheContents, tmp_path: Path) -> None:
    names, ids = ("missile", "dog", "missile"), ("n3", "n5", "n4")
    write_cache(tmp_path / "twins.h5", replace(contents, classnames=names, class_ids=ids))
    (run,) = fit_each(FeatureCache(tmp_path / "twins.h5"), [(4, 1)], [RECIPE], CPU, tmp_path / "runs")
    classifier = read_classifier(run.folder)
    assert classifier.class_ids == ids

    def rows(classnames: tuple[str, ...], class_ids: tuple[str, ...] | None) -> list[int]:
        labels = contents.labels % len(classnames)
        text = TextBases(contents.text.templates, contents.text.embeddings[: len(classnames)])
        kept = replace(contents, classnames=classnames, class_ids=class_ids, labels=labels, text=text, splits={})
        write_cache(tmp_path / "kept.h5", kept)
        return class_rows(classifier, FeatureCache(tmp_path / "kept.h5")).tolist()

    assert rows(("missile", "missile"), ("n4", "n3")) == [2, 0]
    assert rows(("other words", "missile"), ("n5", "n4")) == [1, 2]
    assert rows(names, None) == [0, 1, 2]  # without identifiers, by name: the same list is the same list
    with pytest.raises(RunError, match="several classes with the same name"):
        rows(("dog", "missile"), None)
    with pytest.raises(RunError, match="1 of 2 classes that the run does not know .'dog'"):
        rows(("missile", "dog"), ("n3", "n6"))


def test_turning_images_upright_does_not_make_another_encoder(
    contents: CacheContents, results: list[Run], tmp_path: Path
) -> None:
    preprocess = {**contents.provenance.preprocess, "orientation": "stored"}
    write_cache(
        tmp_path / "stored.h5", replace(contents, provenance=replace(contents.provenance, preprocess=preprocess))
    )
    found = evaluate_run(read_classifier(results[0].folder), FeatureCache(tmp_path / "stored.h5"), CPU)
    assert found.test_accuracy == results[0].metrics.test_accuracy


def test_finished_runs_are_those_of_the_same_numbers(
    contents: CacheContents, cache: FeatureCache, results: list[Run], tmp_path: Path
) -> None:
    splits, runs = [(1, 1), (1, 2), (4, 1), (4, 2)], tmp_path / "runs"
    assert list(finished_runs(cache, splits, RECIPE, runs)) == splits
    assert finished_runs(cache, splits, RECIPE.changed(weight_decay=0.0), runs) == {}
    (results[3].folder / "metrics.json").unlink()
    assert list(finished_runs(cache, splits, RECIPE, runs)) == splits[:3]

    def with_changed_row(row: int) -> list[tuple[int, int]]:
        features = contents.image_features.copy()
        features[row] += 1
        write_cache(cache.path, replace(contents, image_features=features))
        return list(finished_runs(FeatureCache(cache.path), splits, RECIPE, runs))

    assert with_changed_row(5) == [(1, 2)]  # of the first split and of all with four shots
    assert with_changed_row(20) == []  # a test image
    write_cache(cache.path, contents)
    assert list(finished_runs(FeatureCache(cache.path), splits, RECIPE, runs)) == splits[:3]


def test_a_missing_split_is_refused_before_anything_is_fitted(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no split with 16 shots and seed 1"):
        list(fit_each(cache, [(1, 1), (16, 1)], [RECIPE], CPU, tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_runs_that_cannot_be_written(cache: FeatureCache, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        list(fit_each(cache, [(1, 1)], [RECIPE], CPU, tmp_path / "file"))


def test_recipe_comes_from_the_cache_and_choices_win(contents: CacheContents, tmp_path: Path) -> None:
    own = replace(contents.provenance, recipe=Recipe(alpha=1.0, lr=0.01).as_dict())
    write_cache(tmp_path / "own.h5", replace(contents, provenance=own))
    cache = FeatureCache(tmp_path / "own.h5")
    assert recipe_of(cache) == Recipe(alpha=1.0, lr=0.01)
    assert recipe_of(cache, alpha=0.25, lr=None) == Recipe(alpha=0.25, lr=0.01)


def test_a_recipe_of_a_newer_version_says_so(contents: CacheContents, tmp_path: Path) -> None:
    newer = replace(contents.provenance, recipe={"alpha": 1.0, "beta": 2.0})
    write_cache(tmp_path / "newer.h5", replace(contents, provenance=newer))
    with pytest.raises(CacheError, match="newer version .*beta.*upgrade"):
        recipe_of(FeatureCache(tmp_path / "newer.h5"))


def test_without_val_images_there_is_no_val_accuracy(contents: CacheContents, tmp_path: Path) -> None:
    no_val = {name: replace(split, val=np.array([], np.int64)) for name, split in contents.splits.items()}
    write_cache(tmp_path / "no-val.h5", replace(contents, splits=no_val))
    (run,) = fit_each(FeatureCache(tmp_path / "no-val.h5"), [(4, 1)], [RECIPE], CPU, tmp_path / "runs")
    assert run.metrics.val_accuracy is None
    assert summarise([run.metrics])[0].mean_val_accuracy is None


def test_summary_over_seeds() -> None:
    numbers = ((16, 1, 80.0), (1, 1, 60.0), (16, 2, 83.0), (16, 3, 89.0))
    table = summarise(metrics_of(shots=shots, seed=seed, test_accuracy=test) for shots, seed, test in numbers)
    assert [(row.shots, row.seeds) for row in table] == [(1, (1,)), (16, (1, 2, 3))]
    assert (table[0].mean_test_accuracy, table[0].std_test_accuracy) == (60.0, None)
    assert table[1].mean_test_accuracy == 84.0
    assert table[1].std_test_accuracy == pytest.approx(21**0.5)  # (16 + 1 + 25) / 2
    assert table[1].std_test_accuracy == pytest.approx(statistics.stdev([80, 83, 89]))


def test_finding_runs(results: list[Run], tmp_path: Path) -> None:
    assert len(find_runs(tmp_path / "runs")) == 4
    assert find_runs(results[0].folder) == [results[0].folder]
    assert find_runs(results[0].folder / "classifier.safetensors") == [results[0].folder]
    with pytest.raises(RunError, match="no classifier.safetensors at or below"):
        find_runs(tmp_path / "cache")


def test_runs_sort_by_number(cache: FeatureCache, results: list[Run], tmp_path: Path) -> None:
    method = results[0].folder.parent.parent
    (method / "shots_1").rename(method / "shots_16")
    assert [folder.parent.name for folder in find_runs(method)] == ["shots_4", "shots_4", "shots_16", "shots_16"]


def test_damaged_runs(results: list[Run]) -> None:
    folder = results[0].folder
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


def test_a_cache_without_test_images_is_refused_before_anything_is_fitted(
    contents: CacheContents, tmp_path: Path
) -> None:
    kept = slice(0, 15)
    partly = {name: getattr(contents, name)[kept] for name in ("paths", "stamps", "labels", "partitions")}
    write_cache(tmp_path / "few.h5", replace(contents, **partly, image_features=contents.image_features[kept]))
    with pytest.raises(CacheError, match=r"few\.h5 has no test images to measure a fit on; fix the images"):
        list(fit_each(FeatureCache(tmp_path / "few.h5"), [(1, 1)], [Recipe(epochs=1)], CPU, tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
