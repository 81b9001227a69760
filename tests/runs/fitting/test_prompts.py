"""Fits with several sets of prompts of one cache: text, names, files and tables; the default set keeps its bits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.class_halves import open_cache
from taskres_cache.caches.contents import CacheContents, PromptSet
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import CacheError
from taskres_cache.methods.choice import MethodChoice
from taskres_cache.methods.registry import find_method
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.comparison.grid import grid_of
from taskres_cache.reporting.published.figures import published_method
from taskres_cache.reporting.studies import gather_studies
from taskres_cache.runs.evaluation import evaluate_run, evaluate_zero_shot
from taskres_cache.runs.finding import method_of_set
from taskres_cache.runs.fitting.few_shot_tasks import TaskReader
from taskres_cache.runs.fitting.method_study import finished_method_runs, fit_methods
from taskres_cache.runs.fitting.study import finished_runs, fit_each
from taskres_cache.runs.run import Run, load_run
from tests.conftest import Taskres, one_line
from tests.runs.conftest import CPU, RECIPE

SPLITS = [(4, 1), (4, 2)]
COUNTS = (2, 1, 3)  # prompts per class


@pytest.fixture
def ragged(contents: CacheContents) -> PromptSet:
    """Prompts near the class's text, any number per class; the projection is that of the cache, the identity."""
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(3), COUNTS)
    inputs = contents.text.embeddings.mean(axis=1)[labels] + rng.normal(scale=0.9, size=(6, 8))
    inputs = inputs.astype(np.float32)
    return PromptSet(tuple(f"text {number}" for number in range(6)), labels, inputs, inputs)


@pytest.fixture
def cache(tmp_path: Path, contents: CacheContents, ragged: PromptSet) -> FeatureCache:
    path = tmp_path / "cache" / "tower-random" / "toy.h5"
    write_cache(path, replace(contents, prompts={"cupl": ragged}))
    return FeatureCache(path)


def by_hand(cache: FeatureCache, base: np.ndarray) -> float:
    """Return the accuracy of cosine classification with a base, written a second time."""
    images, labels = cache.test()
    scores = images @ (base / np.linalg.norm(base, axis=1, keepdims=True)).T
    return 100 * float((scores.argmax(axis=1) == labels).mean())


def fitted(cache: FeatureCache, out: Path, *recipes: Recipe) -> list[Run]:
    return list(fit_each(cache, SPLITS, recipes or (RECIPE,), CPU, out))


def test_a_run_starts_from_the_mean_of_its_own_prompts(cache: FeatureCache, ragged: PromptSet, tmp_path: Path) -> None:
    ends = np.cumsum(COUNTS)
    base = np.stack([ragged.embeddings[e - n : e].mean(axis=0) for e, n in zip(ends, COUNTS, strict=True)])
    (run, _) = fitted(cache.using("cupl"), tmp_path / "runs")
    assert run.folder == tmp_path / "runs/tower-random/toy/taskres-regular-lr0.02-epochs30@cupl/shots_4/seed_1"
    stored = json.loads((run.folder / "metrics.json").read_text())
    assert (stored["prompts"], stored["method"]) == ("cupl", "taskres-regular-lr0.02-epochs30@cupl")
    classifier = load_run(run.folder).classifier
    assert np.array_equal(classifier.base, base)
    assert (classifier.prompts, classifier.templates) == ("cupl", ())
    assert run.metrics.zero_shot_accuracy == pytest.approx(by_hand(cache, base))
    assert run.metrics.zero_shot_accuracy != by_hand(cache, cache.text_features)


def test_the_default_set_keeps_its_bits_and_files(cache: FeatureCache, contents: CacheContents, tmp_path: Path) -> None:
    plain = tmp_path / "plain" / "tower-random" / "toy.h5"
    write_cache(plain, contents)
    (alone, _), (next_to, _) = fitted(FeatureCache(plain), tmp_path / "a"), fitted(cache, tmp_path / "b")
    assert alone.metrics.prompts == next_to.metrics.prompts == "default"
    assert alone.folder.relative_to(tmp_path / "a") == next_to.folder.relative_to(tmp_path / "b")
    assert b'"prompts"' not in (alone.folder / "classifier.safetensors").read_bytes()
    for name in ("classifier_sha256", "inputs_sha256", "study_sha256", "test_accuracy", "zero_shot_accuracy"):
        assert getattr(alone.metrics, name) == getattr(next_to.metrics, name)


def test_an_enhanced_base_of_any_number_of_prompts(cache: FeatureCache, ragged: PromptSet, tmp_path: Path) -> None:
    (run, _) = fitted(cache.using("cupl"), tmp_path, Recipe(base="enhanced", epochs=3))
    classifier = load_run(run.folder).classifier
    means = np.stack([ragged.pre_projection[ragged.labels == label].mean(axis=0) for label in range(3)])
    assert classifier.projection is not None
    assert np.allclose(classifier.base, means @ classifier.projection, atol=1e-6)
    projected = ragged.pre_projection @ classifier.projection  # (P, D)
    of_mean = [projected[ragged.labels == label].mean(axis=0) for label in range(3)]
    assert np.allclose(classifier.base, of_mean, atol=1e-5)


def test_equal_counts_have_the_same_bits_as_templates(cache: FeatureCache, contents: CacheContents) -> None:
    text = contents.text
    flat = text.embeddings.reshape(-1, 8)
    same = PromptSet(tuple("abcdef"), np.repeat(np.arange(3), 2), flat, flat)
    write_cache(cache.path, replace(contents, prompts={"same": same}))
    two = FeatureCache(cache.path)
    assert np.array_equal(two.using("same").text_features, two.text_features)


def test_methods_see_every_prompt_of_the_set(cache: FeatureCache, ragged: PromptSet) -> None:
    choice = MethodChoice(find_method("gda").method, find_method("gda").method.options)
    text = TaskReader(cache.using("cupl"), CPU).task((4, 1), choice).text
    assert np.array_equal(text.features, ragged.embeddings)
    assert text.labels.tolist() == [0, 0, 1, 2, 2, 2]
    of_templates = TaskReader(cache, CPU).task((4, 1), choice).text
    assert np.array_equal(of_templates.features, cache.text_bases().embeddings.reshape(6, 8))


def test_finished_runs_are_those_of_the_set(cache: FeatureCache, tmp_path: Path) -> None:
    choice = MethodChoice(find_method("gda").method, find_method("gda").method.options)
    fitted(cache.using("cupl"), tmp_path)
    list(fit_methods(cache.using("cupl"), SPLITS, [choice], CPU, tmp_path))
    for one, count in ((cache, 0), (cache.using("cupl"), 2)):
        assert len(finished_runs(one, SPLITS, RECIPE, tmp_path)) == count
        assert len(finished_method_runs(one, SPLITS, choice, tmp_path)) == count


def test_other_prompts_of_the_same_name_do_not_replace_a_run(
    cache: FeatureCache, contents: CacheContents, ragged: PromptSet, tmp_path: Path
) -> None:
    (first, _) = fitted(cache.using("cupl"), tmp_path)
    changed = replace(ragged, embeddings=ragged.embeddings[::-1].copy(), pre_projection=ragged.embeddings[::-1].copy())
    write_cache(cache.path, replace(contents, prompts={"cupl": changed}))
    (second, _) = fitted(FeatureCache(cache.path).using("cupl"), tmp_path)
    assert second.kept == first.folder
    assert second.metrics.inputs_sha256 != first.metrics.inputs_sha256


def test_evaluation_uses_the_text_of_the_run(cache: FeatureCache, tmp_path: Path) -> None:
    (run, _) = fitted(cache.using("cupl"), tmp_path)
    evaluated = evaluate_run(load_run(run.folder).classifier, FeatureCache(cache.path), CPU)
    assert evaluated.zero_shot_accuracy == run.metrics.zero_shot_accuracy
    assert evaluated.test_accuracy == run.metrics.test_accuracy
    (half, _) = fitted(open_cache(cache.path, "base").using("cupl"), tmp_path)
    assert "@cupl-base-classes" in str(half.folder)
    assert (
        half.metrics.zero_shot_accuracy
        == evaluate_run(load_run(half.folder).classifier, open_cache(cache.path, "base"), CPU).zero_shot_accuracy
    )


def test_a_report_compares_sets_each_with_its_own_zero_shot(cache: FeatureCache, tmp_path: Path) -> None:
    default, cupl = fitted(cache, tmp_path / "runs"), fitted(cache.using("cupl"), tmp_path / "runs")
    (study,) = gather_studies([tmp_path / "runs"], cache.path.parents[1], CPU)
    assert list(study.methods) == ["taskres-regular-lr0.02-epochs30", "taskres-regular-lr0.02-epochs30@cupl"]
    grid = grid_of(study)
    assert list(grid.methods) == ["zero-shot", "zero-shot@cupl", *study.methods]
    for runs, suffix in ((default, ""), (cupl, "@cupl")):
        zero_shot = grid.methods[f"zero-shot{suffix}"][4]
        assert zero_shot.mean == runs[0].metrics.zero_shot_accuracy
        assert zero_shot.gain == 0
        cell = grid.methods[f"taskres-regular-lr0.02-epochs30{suffix}"][4]
        assert cell.gain == pytest.approx(np.mean([run.metrics.test_accuracy for run in runs]) - zero_shot.mean)
    assert published_method("taskres-regular") == "TaskRes"
    assert published_method("taskres-regular@cupl") is None
    assert published_method("gda-ridge0.1@cupl") is None


def test_zero_shot_of_every_set(cache: FeatureCache, ragged: PromptSet, taskres: Taskres) -> None:
    found = {one.form: one for one in evaluate_zero_shot(cache, CPU)}
    assert list(found)[3:] == ["prompt ensemble@cupl", "residual base@cupl"]
    directions = ragged.embeddings / np.linalg.norm(ragged.embeddings, axis=1, keepdims=True)
    ensemble = np.stack([directions[ragged.labels == label].mean(axis=0) for label in range(3)])
    assert found["prompt ensemble@cupl"].test_accuracy == pytest.approx(by_hand(cache, ensemble))
    base = cache.using("cupl").text_features
    assert found["residual base@cupl"].test_accuracy == pytest.approx(by_hand(cache, base))
    assert found["residual base"].test_accuracy == pytest.approx(by_hand(cache, cache.text_features))
    assert [one.prompts_per_class for one in found.values()] == [1, 2, 2, 2, 2]
    assert "residual base@cupl" in taskres("eval", cache.path, "--zero-shot").out


def test_names_fit_into_a_folder() -> None:
    assert method_of_set("gda", "default") == "gda"
    names = {method_of_set("m" * 240, name) for name in ("a", "a" * 63, "a" * 64, "default")}
    assert len(names) == 4
    assert max(len(f"{name}-base-classes") for name in names) <= 255


def test_the_command_compares_sets(cache: FeatureCache, tmp_path: Path, taskres: Taskres) -> None:
    asked = ("fit", cache.path, "--shots", 4, "--epochs", 2, "--out", tmp_path / "runs", "--device", "cpu")
    done = taskres(*asked, "--prompts", "default,cupl", "--method", "taskres,gda")
    assert done.status == 0
    assert "toy, tower (random): sets of prompts" in done.out
    assert [line.split()[:3] for line in done.out.splitlines()[3:7]] == [
        ["taskres-regular-epochs2", "default", "4"],
        ["taskres-regular-epochs2", "cupl", "4"],
        ["gda", "default", "4"],
        ["gda", "cupl", "4"],
    ]
    plain = json.loads(taskres(*asked, "--json").out)
    assert [run["prompts"] for run in plain["runs"]] == ["default"]
    wrong = one_line(taskres(*asked, "--prompts", "default,cupel"))
    assert "unknown set of prompts 'cupel'; did you mean 'cupl'? the cache has default, cupl; add it:" in wrong


def test_the_default_set_of_a_cache_is_fitted(cache: FeatureCache, contents: CacheContents, ragged: PromptSet) -> None:
    write_cache(cache.path, replace(contents, prompts={"cupl": ragged}, default_prompts="cupl"))
    (run, _) = fitted(FeatureCache(cache.path), cache.path.parent)
    assert run.metrics.method.endswith("@cupl")


def test_zero_shot_without_a_name_is_that_of_the_templates(
    cache: FeatureCache, contents: CacheContents, ragged: PromptSet, tmp_path: Path, taskres: Taskres
) -> None:
    write_cache(cache.path, replace(contents, prompts={"cupl": ragged}, default_prompts="cupl"))
    printed = taskres("fit", cache.path, "--shots", 4, "--epochs", 2, "--out", tmp_path / "runs").out
    rows = dict(line.split()[:3:2] for line in printed.splitlines() if line.startswith("zero-shot"))
    default, cupl = (by_hand(cache, cache.using(name).text_features) for name in ("default", "cupl"))
    assert default != cupl
    assert rows == {"zero-shot": f"{default:.1f}", "zero-shot@cupl": f"{cupl:.1f}"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: np.where(np.arange(6)[:, None] == 1, -rows[:1], rows), "of class 0 .mean over prompts. has only"),
        (lambda rows: np.repeat(rows[:1], 6, axis=0), "have the same mean for all 3 classes"),
        (lambda rows: rows * np.float32("nan"), "prompts/cupl/.* has NaN or infinite values"),
    ],
)
def test_a_set_that_means_nothing_is_refused(
    change: Callable[[np.ndarray], np.ndarray],
    message: str,
    cache: FeatureCache,
    contents: CacheContents,
    ragged: PromptSet,
    tmp_path: Path,
) -> None:
    rows = change(ragged.embeddings)
    write_cache(cache.path, replace(contents, prompts={"cupl": replace(ragged, embeddings=rows, pre_projection=rows)}))
    with pytest.raises(CacheError, match=message):
        fitted(FeatureCache(cache.path).using("cupl"), tmp_path / "runs")
    assert fitted(FeatureCache(cache.path), tmp_path / "runs")
