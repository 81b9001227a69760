"""Alpha follows the size of the text features for data of one's own, and is only spoken of for the paper's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.contents import CacheContents
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.recipe import Recipe
from taskres_cache.runs.fitting.alpha_scale import alpha_note, fitting_alpha, size_ratio
from taskres_cache.runs.fitting.study import fit_each, recipe_of
from tests.conftest import Taskres
from tests.runs.conftest import CPU


def scaled(contents: CacheContents, folder: Path, times: float, defaults: str = "own") -> FeatureCache:
    """A cache whose base has `times` the size of OpenAI's text features."""
    text = contents.text
    factor = np.float32(times * 0.3 / np.sqrt(np.mean(text.embeddings.mean(axis=1) ** 2)))
    sized = replace(text, embeddings=text.embeddings * factor, pre_projection=text.pre_projection * factor)
    path = folder / f"{defaults}-{times:g}" / "tower-random" / "toy.h5"
    write_cache(path, replace(contents, text=sized, provenance=replace(contents.provenance, defaults=defaults)))
    return FeatureCache(path)


def test_the_ratio_is_to_a_coordinate_of_0_3() -> None:
    base = np.array([[3.0, -3.0], [3.0, 3.0]])
    assert size_ratio(base) == pytest.approx(10.0)
    assert fitting_alpha(Recipe(), base) == 5.0
    assert fitting_alpha(Recipe(), base / 100) == 0.05
    assert [fitting_alpha(Recipe(), base / 10 * by) for by in (0.51, 1.0, 1.99)] == [None] * 3
    assert fitting_alpha(Recipe(), base / 10 * 2.01) == pytest.approx(1.0, abs=0.01)


def test_features_times_ten_gain_the_same(contents: CacheContents, tmp_path: Path) -> None:
    weights = []
    for times in (1.0, 10.0, 0.1):
        cache = scaled(contents, tmp_path, times)
        recipe = recipe_of(cache, epochs=30, lr=0.02)
        assert recipe.alpha == pytest.approx(0.5 * times)
        (run,) = fit_each(cache, [(4, 1)], [recipe], CPU, tmp_path / f"runs-{times:g}")
        assert run.metrics.alpha == run.metrics.recipe.alpha == recipe.alpha
        head = run.classifier.head.weights.numpy()
        weights.append(head / np.linalg.norm(head, axis=1, keepdims=True))
    assert weights[1] == pytest.approx(weights[0], abs=1e-4)
    assert weights[2] == pytest.approx(weights[0], abs=1e-4)
    cache = scaled(contents, tmp_path, 10.0, "paper")
    (run,) = fit_each(cache, [(4, 1)], [recipe_of(cache, epochs=30, lr=0.02)], CPU, tmp_path / "unscaled")
    head = run.classifier.head.weights.numpy()
    assert np.abs(head / np.linalg.norm(head, axis=1, keepdims=True) - weights[0]).max() > 1e-2


def test_nothing_is_scaled_if_it_was_asked_for_or_does_not_weigh_text(contents: CacheContents, tmp_path: Path) -> None:
    cache = scaled(contents, tmp_path, 10.0)
    assert recipe_of(cache).alpha == 5.0
    for choices in (
        {"alpha": 0.5},
        {"alpha_rule": "learn"},
        {"alpha_rule": "auto"},
        {"residual": "image"},
        {"base": "enhanced-only"},
        {"base": "means"},
    ):
        assert recipe_of(cache, **choices).alpha == 0.5
    assert recipe_of(scaled(contents, tmp_path, 1.5)).alpha == 0.5


def test_the_papers_data_sets_keep_their_alpha_and_get_a_note(contents: CacheContents, tmp_path: Path) -> None:
    cache = scaled(contents, tmp_path, 10.0, "paper")
    recipe = recipe_of(cache)
    assert recipe == Recipe()
    assert alpha_note(cache, recipe) == (
        "the text features are 10 times as large as OpenAI's, for which alpha 0.5 was chosen; --alpha 5 moves these as "
        "far"
    )
    assert alpha_note(scaled(contents, tmp_path, 1.2, "paper"), recipe) == ""


def test_fit_says_what_it_does(taskres: Taskres, contents: CacheContents, tmp_path: Path, here: Path) -> None:
    arguments = ("--method", "taskres", "--shots", "4", "--epochs", "2")
    own, paper = (scaled(contents, tmp_path, 10.0, defaults).path for defaults in ("own", "paper"))
    printed = taskres("fit", own, *arguments)
    assert "10 times as large as OpenAI's, so alpha is 5 instead of 0.5" in printed.err
    assert "taskres-regular-alpha5-epochs2" in printed.err
    assert "--alpha 5 moves these as far" in taskres("fit", paper, *arguments, "--out", "paper").err
    given = taskres("fit", own, *arguments, "--alpha", "0.5")
    assert "OpenAI's" not in given.err
    assert "/taskres-regular-epochs2/" in given.err
