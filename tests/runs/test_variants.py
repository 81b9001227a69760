"""Runs of every base and every kind of residual: what they store and measure, and evaluating them again."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from taskres_cache.caches.contents import CacheContents, TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import OptionError, RunError
from taskres_cache.methods.task_residual.loop import try_residuals
from taskres_cache.methods.task_residual.task import Fit
from taskres_cache.methods.temperature import fit_temperature
from taskres_cache.recipe import Recipe
from taskres_cache.runs.evaluation import evaluate_run
from taskres_cache.runs.fitting.base_files import read_base
from taskres_cache.runs.fitting.study import finished_runs, fit_each
from taskres_cache.runs.results import summarise
from taskres_cache.runs.run import Run, read_classifier
from tests.by_hand import accuracy
from tests.runs.conftest import CPU

SPLITS = [(1, 1), (4, 1), (4, 2)]
PLAIN = Recipe(epochs=30, lr=0.02)


def fitted(cache: FeatureCache, recipes: list[Recipe], out: Path, **options: Any) -> list[Run]:
    return list(fit_each(cache, SPLITS, recipes, CPU, out, **options))


def test_metrics_contain_zero_shot_base_and_residual(
    cache: FeatureCache, contents: CacheContents, tmp_path: Path
) -> None:
    recipes = [PLAIN.changed(base=base) for base in ("regular", "enhanced", "enhanced-only")]
    runs = fitted(cache, recipes, tmp_path)
    test, zero_shot = slice(15, 24), contents.text.embeddings.mean(axis=1)
    features, labels = contents.image_features[test], contents.labels[test]
    for regular, enhanced, only in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
        stored = load_file(enhanced.folder / "classifier.safetensors")
        text = contents.text.pre_projection
        assert text is not None
        assert np.allclose(stored["base"], text.mean(axis=1) @ stored["projection"], atol=1e-6)
        assert np.abs(stored["projection"] - np.eye(8)).max() > 0.1
        measured = {name: getattr(enhanced.metrics, f"{name}_accuracy") for name in ("zero_shot", "base", "test")}
        weights = stored["base"] + 0.5 * stored["residual"]
        assert measured["zero_shot"] == pytest.approx(accuracy(features, zero_shot, labels))
        assert measured["base"] == pytest.approx(accuracy(features, stored["base"], labels))
        assert measured["test"] == pytest.approx(accuracy(features, weights, labels))
        assert len(enhanced.metrics.base_tuning.epoch_losses) == 50
        assert len(enhanced.metrics.epoch_losses) == 30
        assert enhanced.metrics.seconds.base > 0
        assert only.metrics.test_accuracy == only.metrics.base_accuracy == measured["base"]
        assert only.metrics.epochs == only.metrics.kept_epochs == 0
        assert not load_file(only.folder / "classifier.safetensors")["residual"].any()
        assert regular.metrics.base_accuracy == regular.metrics.zero_shot_accuracy == measured["zero_shot"]
        assert regular.metrics.base_tuning is None
        assert set(load_file(regular.folder / "classifier.safetensors")) == {"base", "residual"}
    values = [tuple(getattr(run.metrics, f"{name}_accuracy") for name in ("zero_shot", "base", "test")) for run in runs]
    assert any(zero != base for zero, base, _ in values)  # otherwise the comparison would prove little
    summary = next(summary for summary in summarise(run.metrics for run in runs[1::3]) if summary.shots == 4)
    assert summary.mean_base_accuracy == pytest.approx(np.mean([runs[4].metrics.base_accuracy, values[7][1]]))


def test_evaluating_an_enhanced_run_again_gives_the_same_metrics(cache: FeatureCache, tmp_path: Path) -> None:
    for run in fitted(cache, [PLAIN.changed(base="enhanced")], tmp_path):
        again = evaluate_run(read_classifier(run.folder), cache, CPU)
        assert again.zero_shot_accuracy == run.metrics.zero_shot_accuracy
        assert again.base_accuracy == run.metrics.base_accuracy
        assert again.test_accuracy == run.metrics.test_accuracy
        assert again.top5_accuracy == run.metrics.top5_accuracy
        assert again.calibration_error == run.metrics.calibration_error
        assert again.untempered_calibration_error == run.metrics.untempered_calibration_error


def test_temperatures_are_fitted_on_val_and_class_accuracies_average_to_the_accuracy(
    cache: FeatureCache, tmp_path: Path
) -> None:
    for run in fitted(cache, [PLAIN.changed(residual="both", alpha=2.0)], tmp_path):
        classifier = read_classifier(run.folder)
        val = cache.split(classifier.shots, classifier.seed).val
        features, labels = map(torch.from_numpy, (cache.image_features(val), cache.labels[val]))
        head = classifier.head
        assert head.image_shift is not None
        likelihoods = torch.log(replace(head, temperature=1.0).probabilities(features))
        assert classifier.temperature == run.metrics.temperature != 1.0
        assert classifier.temperature == pytest.approx(fit_temperature(likelihoods, labels.long()), rel=1e-3)
        by_class = run.metrics.class_accuracies  # three test images per class
        assert len(by_class) == len(run.metrics.zero_shot_class_accuracies) == 3
        assert np.mean(by_class) == pytest.approx(run.metrics.test_accuracy)
        assert run.metrics.top5_accuracy == 100.0  # there are three classes


@pytest.mark.parametrize("kind", ["image", "both"])
def test_image_residuals_are_stored_and_used(
    cache: FeatureCache, contents: CacheContents, tmp_path: Path, kind: str
) -> None:
    test = slice(15, 24)
    features, labels = contents.image_features[test], contents.labels[test]
    differences = 0
    for run in fitted(cache, [PLAIN.changed(residual=kind, alpha=3.0, lr=0.1)], tmp_path):
        stored = load_file(run.folder / "classifier.safetensors")
        assert stored["image_residual"].shape == (8,)
        assert np.abs(stored["image_residual"]).max() > 0.01
        assert stored["residual"].any() == (kind == "both")
        weights = stored["base"] + 3.0 * stored["residual"]
        expected = accuracy(features, weights, labels, 3.0 * stored["image_residual"])
        assert run.metrics.test_accuracy == pytest.approx(expected)
        assert evaluate_run(read_classifier(run.folder), cache, CPU).test_accuracy == run.metrics.test_accuracy
        assert f"-{kind}-residual" in str(run.folder)
        differences += expected != accuracy(features, weights, labels)
    assert differences  # in some run the image residual changes the accuracy


def test_residuals_of_zero_are_exactly_zero_shot(cache: FeatureCache, tmp_path: Path) -> None:
    (run, *_) = fitted(cache, [PLAIN.changed(residual="both")], tmp_path)
    classifier = read_classifier(run.folder)
    assert classifier.image_residual is not None
    without = replace(
        classifier,
        residual=np.zeros_like(classifier.residual),
        image_residual=np.zeros_like(classifier.image_residual),
    )
    evaluation = evaluate_run(without, cache, CPU)
    assert evaluation.test_accuracy == evaluation.base_accuracy == evaluation.zero_shot_accuracy
    rows = cache.image_features(cache.rows("test"))
    assert without.head.image_shift is not None
    assert np.array_equal(rows + without.head.image_shift.numpy(), rows)


def test_a_damaged_image_residual_raises(cache: FeatureCache, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    (run, *_) = fitted(cache, [PLAIN.changed(residual="image")], tmp_path)
    file = run.folder / "classifier.safetensors"
    with safe_open(file, framework="numpy") as stored:
        metadata = stored.metadata()
    save_file({**load_file(file), "image_residual": np.zeros(7, np.float32)}, file, metadata)
    with pytest.raises(RunError, match=r"not an intact run .image_residual \(7,\)"):
        read_classifier(run.folder)


def test_a_run_can_be_the_base_of_other_runs(cache: FeatureCache, tmp_path: Path) -> None:
    (only, *_) = fitted(cache, [PLAIN.changed(base="enhanced-only")], tmp_path)
    file = read_base(str(only.folder), cache.classnames, cache.provenance.weights_sha256)
    recipe = PLAIN.changed(base="file", base_sha256=file.sha256)
    for run in fitted(cache, [recipe], tmp_path, base_file=file):
        stored = load_file(run.folder / "classifier.safetensors")
        assert np.array_equal(stored["base"], load_file(only.folder / "classifier.safetensors")["base"])
        assert np.array_equal(stored["projection"], load_file(only.folder / "classifier.safetensors")["projection"])
        assert run.metrics.base_accuracy == only.metrics.base_accuracy
        assert run.metrics.base_file.endswith("classifier.safetensors")
        assert f"taskres-file-sha256{file.sha256[:12]}-" in str(run.folder)
    with pytest.raises(OptionError, match="needs a base file"):
        fitted(cache, [recipe], tmp_path)


def test_test_features_cannot_change_an_enhanced_fit(
    cache: FeatureCache, contents: CacheContents, tmp_path: Path
) -> None:
    poisoned = contents.image_features.copy()
    poisoned[15:] = np.random.default_rng(1).normal(size=(9, 8))
    write_cache(tmp_path / "poisoned.h5", replace(contents, image_features=poisoned))
    recipes = [PLAIN.changed(base="enhanced", residual="both"), PLAIN.searching(alphas=(0.5, 2.0))]
    studies = [
        fitted(source, recipes, tmp_path / name)
        for name, source in (("a", cache), ("b", FeatureCache(tmp_path / "poisoned.h5")))
    ]
    for first, second in zip(*studies, strict=True):
        left, right = (load_file(run.folder / "classifier.safetensors") for run in (first, second))
        assert all(np.array_equal(left[name], right[name]) for name in left)
        assert first.metrics.chosen == second.metrics.chosen
    accuracies = [[run.metrics.test_accuracy for run in runs] for runs in studies]
    assert accuracies[0] != accuracies[1]


def test_test_images_are_read_once_and_after_every_choice(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    read, test = FeatureCache.pieces, set(cache.rows("test").tolist())

    def watched(self: FeatureCache, rows: np.ndarray) -> Any:
        calls.append("test" if test & set(rows.tolist()) else "few")
        return read(self, rows)

    def searching(*arguments: Any) -> list[Fit]:
        calls.append("search")
        return try_residuals(*arguments)

    monkeypatch.setattr(FeatureCache, "pieces", watched)
    monkeypatch.setattr("taskres_cache.methods.search.try_residuals", searching)
    recipe = PLAIN.changed(base="enhanced").searching(alphas=(0.5, 2.0))
    runs = fitted(cache, [recipe], tmp_path)
    assert len(runs) == 3
    assert calls.count("search") == calls.count("test") == 1
    assert calls.index("search") < calls.index("test")
    for run in runs:
        assert len(run.metrics.candidates) == 2 * 3 * 3
        best = max(candidate.val_accuracy for candidate in run.metrics.candidates)
        assert run.metrics.chosen.val_accuracy == best == run.metrics.val_accuracy
        assert run.metrics.alpha == run.metrics.chosen.alpha
        assert json.loads((run.folder / "metrics.json").read_text())["chosen"] == asdict(run.metrics.chosen)


def test_finished_runs_depend_on_the_inputs_of_their_base(
    cache: FeatureCache, contents: CacheContents, tmp_path: Path
) -> None:
    recipes = [PLAIN.changed(base="enhanced"), PLAIN.searching(alphas=(0.5, 2.0)), PLAIN]
    fitted(cache, recipes, tmp_path)
    assert all(list(finished_runs(cache, SPLITS, recipe, tmp_path)) == SPLITS for recipe in recipes)
    text = contents.text
    assert text.pre_projection is not None
    scaled = TextBases(text.templates, text.embeddings, 2 * text.pre_projection, 0.5 * np.eye(8, dtype=np.float32))
    write_cache(cache.path, replace(contents, text=scaled))
    changed = FeatureCache(cache.path)
    assert [len(finished_runs(changed, SPLITS, recipe, tmp_path)) for recipe in recipes] == [0, 3, 3]


def test_an_impossible_base_raises_before_anything_is_fitted(
    cache: FeatureCache, contents: CacheContents, tmp_path: Path
) -> None:
    write_cache(cache.path, replace(contents, text=TextBases(contents.text.templates, contents.text.embeddings)))
    with pytest.raises(OptionError, match="use --base regular"):
        fitted(FeatureCache(cache.path), [PLAIN, PLAIN.changed(base="enhanced")], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
