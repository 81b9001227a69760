"""Caches without text features: the format, the methods that need no text, and every number that is then absent."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from taskres_cache.caches.class_halves import open_cache
from taskres_cache.caches.contents import CacheContents, PromptSet
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import CacheError, FitError, OptionError, RunError
from taskres_cache.estimator import TaskResClassifier
from taskres_cache.heads.kinds import LinearHead
from taskres_cache.methods.choice import MethodChoice
from taskres_cache.methods.few_shot import FewShotTask, Text, unit
from taskres_cache.methods.linear.gda import discriminants
from taskres_cache.methods.registry import find_method
from taskres_cache.recipe import Recipe
from taskres_cache.runs.evaluation import evaluate_run
from taskres_cache.runs.fitting.choices import choices_for, suited
from taskres_cache.runs.fitting.method_study import finished_method_runs, fit_methods
from taskres_cache.runs.fitting.study import finished_runs, fit, fit_each, recipe_of
from taskres_cache.runs.run import load_run
from tests.conftest import Taskres, one_line
from tests.methods.tasks import random_task, without_images_of

CPU = torch.device("cpu")
MEANS = Recipe(base="means", epochs=5)


@pytest.fixture
def textless(tmp_path: Path, contents: CacheContents) -> FeatureCache:
    path = tmp_path / "cache" / "tower-random" / "textless.h5"
    provenance = replace(contents.provenance, dataset="textless")
    write_cache(path, replace(contents, text=None, provenance=provenance))
    return FeatureCache(path)


def choice(name: str) -> MethodChoice:
    method = find_method(name).method
    return MethodChoice(method, method.options)


def test_the_format(textless: FeatureCache, cache_file: Path, contents: CacheContents) -> None:
    with h5py.File(textless.path) as file:
        assert file.attrs["format_version"] == 2
        assert "text" not in file
    assert (textless.has_text, textless.templates, textless.prompt_sets) == (False, (), ())
    assert textless.contents().text is None
    assert "text/embeddings" not in textless.verify()
    write_cache(textless.path.with_name("again.h5"), textless.stored_contents())
    assert FeatureCache(textless.path.with_name("again.h5")).verify() == textless.verify()
    for read in (textless.text_bases, textless.text, lambda: textless.text_features):
        with pytest.raises(CacheError, match="has no text features, only image features; use what needs none"):
            read()
    half = open_cache(textless.path, "base")
    assert (half.has_text, len(half.classnames)) == (False, 2)


@pytest.mark.parametrize("absent", [("text/templates",), ("text/embeddings",), ("text/templates", "text/embeddings")])
def test_version_1_needs_text_and_version_2_all_or_none_of_it(cache_file: Path, absent: tuple[str, ...]) -> None:
    with h5py.File(cache_file, "r+") as file:
        for name in absent:
            del file[name]
    with pytest.raises(CacheError, match="has no array text/"):
        FeatureCache(cache_file)
    with h5py.File(cache_file, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(CacheError, match="has no array text/"):  # the projection is still there
        FeatureCache(cache_file)


def test_prompts_need_no_default_set(textless: FeatureCache, contents: CacheContents) -> None:
    words = PromptSet(("a", "b", "c"), np.arange(3), np.eye(3, 8, dtype=np.float32))
    write_cache(textless.path, replace(contents, text=None, prompts={"own": words}))
    cache = FeatureCache(textless.path)
    assert cache.prompt_sets == ("own",)
    cache.verify()


def test_a_residual_starts_from_the_class_means(textless: FeatureCache, tmp_path: Path) -> None:
    assert recipe_of(textless).base == "means"
    runs = list(fit_each(textless, [(4, 1), (1, 2)], [MEANS], CPU, tmp_path / "runs"))
    for run in runs:
        features, labels = textless.train(run.metrics.shots, run.metrics.seed)
        means = np.stack([features[labels == label].mean(axis=0) for label in range(3)])
        assert np.allclose(run.classifier.base, means, atol=1e-6)
        assert run.folder.parents[1].name == "taskres-means-epochs5"
        test_features, test_labels = textless.test()
        scores = unit(test_features) @ unit(run.classifier.base).T
        accuracy = 100 * (scores.argmax(axis=1) == test_labels).mean()
        assert run.metrics.base_accuracy == pytest.approx(accuracy)
        assert run.metrics.zero_shot_accuracy is None
        assert run.metrics.zero_shot_class_accuracies is None
        assert run.metrics.zero_shot_val_accuracy is None
        stored = json.loads((run.folder / "metrics.json").read_text())
        assert stored["zero_shot_accuracy"] is None
        assert load_run(run.folder).metrics == run.metrics
    assert set(finished_runs(textless, [(4, 1), (1, 2)], MEANS, tmp_path / "runs")) == {(4, 1), (1, 2)}
    (other,) = fit_each(textless, [(4, 2)], [MEANS], CPU, tmp_path / "runs")
    assert other.metrics.inputs_sha256 != runs[0].metrics.inputs_sha256


def test_the_estimator_and_a_run_have_the_same_residual(textless: FeatureCache, tmp_path: Path) -> None:
    (run,) = fit_each(textless, [(4, 1)], [MEANS], CPU, tmp_path / "runs")
    estimator = TaskResClassifier(epochs=5, random_state=1, device="cpu").fit(*textless.train(4, 1))
    assert np.array_equal(estimator.text_features_, run.classifier.base)
    assert np.array_equal(estimator.residual_, run.classifier.residual)


def test_class_means_are_a_base_of_any_cache(cache_file: Path, tmp_path: Path) -> None:
    cache = FeatureCache(cache_file)
    (run,) = fit_each(cache, [(4, 1)], [MEANS.changed(residual="image")], CPU, tmp_path / "runs")
    assert run.metrics.zero_shot_accuracy is not None
    assert not np.allclose(run.classifier.base, cache.text_features, atol=0.1)


@pytest.mark.parametrize("base", ["regular", "enhanced", "enhanced-only"])
def test_other_bases_need_text(textless: FeatureCache, tmp_path: Path, base: str) -> None:
    with pytest.raises(OptionError, match=f"no text features, which a base that is {base} needs; use --base means"):
        fit(textless, [(4, 1)], [Recipe(base=base)], "cpu", tmp_path / "runs")


def test_a_class_without_a_mean_is_named(tmp_path: Path, contents: CacheContents) -> None:
    path, rows = tmp_path / "few.h5", contents.splits[4, 1].train
    splits = {(4, 1): replace(contents.splits[4, 1], train=rows[contents.labels[rows] != 1])}
    write_cache(path, replace(contents, text=None, splits=splits))
    with pytest.raises(OptionError, match="class 'dog' has no mean image with 4 shots and seed 1"):
        fit(path, [(4, 1)], [MEANS], "cpu", tmp_path / "runs")


def test_methods_that_need_text_are_left_out_in_one_note(textless: FeatureCache) -> None:
    kept, notes = suited(textless, choices_for(textless, ["auto", "clap", "timo", "gda", "linear-probe"]))
    assert [one.method.name for one in kept] == ["auto", "gda", "linear-probe"]
    (note,) = notes
    assert note.startswith(f"clap, timo are left out: {textless.path} has no text features")


@pytest.mark.parametrize("name", ["auto", "gda", "linear-probe"])
def test_methods_without_text(textless: FeatureCache, tmp_path: Path, name: str) -> None:
    (run,) = fit_methods(textless, [(4, 1)], [choice(name)], CPU, tmp_path / "runs")
    assert run.metrics.test_accuracy > 50
    assert (run.metrics.zero_shot_accuracy, run.metrics.base_accuracy) == (None, None)
    assert run.metrics.val_accuracy is not None
    assert set(finished_method_runs(textless, [(4, 1)], choice(name), tmp_path / "runs")) == {(4, 1)}
    result = evaluate_run(run.classifier, textless, CPU)
    assert (result.zero_shot_accuracy, result.base_accuracy) == (None, None)
    assert result.test_accuracy == pytest.approx(run.metrics.test_accuracy)


def absent(task: FewShotTask) -> FewShotTask:
    return replace(task, text=Text.absent(task.classes, task.train.image_features.shape[1]))


def test_gda_without_text_is_its_discriminants() -> None:
    task = absent(random_task(views=0))
    head = find_method("gda").method.fit(task, find_method("gda").method.options).head
    rows = torch.from_numpy(unit(task.train.image_features))
    weights, bias = discriminants(rows, torch.from_numpy(task.train.labels), task.classes)
    assert isinstance(head, LinearHead)
    assert torch.equal(head.weights, weights)
    assert torch.equal(head.bias, bias)


@pytest.mark.parametrize("val", [0, 2])
@pytest.mark.parametrize("shots", [1, 4])
def test_auto_without_text(val: int, shots: int) -> None:
    task = absent(random_task(classes=5, shots=shots, views=0, val_per_class=val, dim=24))
    method = find_method("auto").method
    adapted = method.fit(task, method.options)
    images = torch.from_numpy(random_task(classes=5, shots=40, views=0, dim=24).train.image_features)
    assert torch.isfinite(adapted.head.logits(images)).all()
    judged = {"val"} if val else {"cross-validation"} if shots > 1 else {"rule"}
    assert adapted.chosen["judged by"] in judged
    assert not any("zero-shot" in str(trial.settings["candidate"]) for trial in adapted.trials)


def test_auto_does_not_judge_a_class_by_folds_that_leave_it_without_images() -> None:
    task = absent(without_images_of(random_task(shots=4, views=0, val_per_class=0), 2, keep=1))
    method = find_method("auto").method
    assert method.fit(task, method.options).chosen["judged by"] == "rule"
    with pytest.raises(FitError, match="a class has no usable training images"):
        method.fit(absent(without_images_of(random_task(views=0), 2)), method.options)


def test_a_method_that_reads_absent_text_fails_in_one_line() -> None:
    for read in ("base", "ensemble"):
        with pytest.raises(OptionError, match="set needs_text=True"):
            getattr(Text.absent(3, 8), read)


def test_class_means_do_not_apply_to_other_classes(
    textless: FeatureCache, cache_file: Path, contents: CacheContents, tmp_path: Path
) -> None:
    (run,) = fit_each(textless, [(4, 1)], [MEANS.changed(residual="image")], CPU, tmp_path / "runs")
    other = tmp_path / "other.h5"
    write_cache(other, replace(contents, classnames=("black_cat", "dog", "owl")))
    with pytest.raises(RunError, match="1 of 3 classes that the run does not know"):
        evaluate_run(run.classifier, FeatureCache(other), CPU)


def test_commands_without_text(textless: FeatureCache, taskres: Taskres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(textless.path.parents[2])
    done = taskres("fit", "textless", "--method", "all", "--shots", "1,4", "--seeds", "1,2", "--epochs", "3")
    assert done.status == 0, done.err
    assert "has no text features: the mean image of each class takes the place of the text" in done.err
    assert "zero-shot" not in done.out
    assert "gain" not in done.out
    shown = taskres("fit", "textless", "--shots", "4", "--epochs", "3", "--json")
    summary, *_ = json.loads(shown.out)["summary"]
    assert (summary["method"], summary["zero_shot_accuracy"]) == ("taskres-means-epochs3", None)
    alone = taskres("fit", "textless", "--shots", "4", "--method", "clap")
    assert "has no text features; use a method that needs none" in one_line(alone)
    assert "use --base means" in one_line(taskres("fit", "textless", "--shots", "4", "--base", "regular"))
    runs = "runs/tower-random/textless"
    table = taskres("report", runs, "--to", "r.md", "--to", "r.csv", "--to", "r.html", "--table", "-")
    assert table.status == 0, table.err
    assert "gain" not in table.out
    assert "Accuracy per class" in Path("r.html").read_text()
    assert "Gain per class" not in Path("r.html").read_text()
    assert "gain" not in Path("r.md").read_text().replace("gain per class", "")
    row = Path("r.csv").read_text().splitlines()
    assert dict(zip(row[0].split(","), row[1].split(","), strict=True))["zero_shot"] == ""
    assert taskres("eval", runs).status == 0
    assert "has no text features" in one_line(taskres("eval", "textless", "--zero-shot"))
