"""Choice of alpha, learning rate and weight decay by validation accuracy."""

from dataclasses import fields
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError, OptionError
from taskres_cache.methods.search import (
    ALPHA_MULTIPLES,
    Candidate,
    alpha_grid,
    candidates_of,
    largest_alpha_won,
    search_residuals,
)
from taskres_cache.methods.task_residual.loop import fit_residuals, try_residuals
from taskres_cache.methods.task_residual.task import Fit, FitTask
from taskres_cache.methods.training_sets import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe
from tests.by_hand import accuracy

CPU = torch.device("cpu")


def task_and_base(
    seed: int = 1, val_labels_shuffled: int | None = None, recipe: Recipe | None = None
) -> tuple[FitTask, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = np.tile(np.arange(4), 15)
    centres = rng.normal(size=(4, 16))
    features = (centres[labels] + 1.5 * rng.normal(size=(60, 16))).astype(np.float32)
    val_labels = labels[40:]
    if val_labels_shuffled is not None:
        val_labels = np.random.default_rng(val_labels_shuffled).permutation(val_labels)
    base = (0.3 * rng.normal(size=(4, 16))).astype(np.float32)
    sets = TrainingSet.from_features(features[:40], labels[:40]), ValidationSet(features[40:], val_labels)
    return FitTask(sets[0], recipe or Recipe(alpha_rule="auto"), 20, seed, sets[1], base=base), base


def test_the_grid_is_scaled_to_the_base() -> None:
    openai_like = np.full((3, 4), -0.3)
    assert alpha_grid(openai_like) == tuple(0.5 * multiple for multiple in ALPHA_MULTIPLES)
    assert 0.5 in alpha_grid(openai_like)
    assert alpha_grid(10 * openai_like) == pytest.approx([10 * alpha for alpha in alpha_grid(openai_like)])
    mixed = np.array([[0.3, 0.0], [0.0, 0.3]])  # root mean square, not mean
    assert alpha_grid(mixed)[3] == pytest.approx(0.5 / 2**0.5, rel=1e-2)


def test_the_candidate_with_the_best_validation_accuracy_is_chosen() -> None:
    task, base = task_and_base()
    (chosen,) = search_residuals([task], 100.0, CPU)
    assert [candidate.alpha for candidate in chosen.candidates] == pytest.approx(alpha_grid(base))
    best = max(chosen.candidates, key=lambda candidate: (candidate.val_accuracy, -candidate.val_loss))
    assert chosen.fit.alpha == best.alpha
    assert len({candidate.val_accuracy for candidate in chosen.candidates}) > 1
    for candidate in chosen.candidates:
        alone = fit_residuals([FitTask(task.training, Recipe(alpha=candidate.alpha), 20, 1, base=base)], 100.0, CPU)[0]
        assert task.validation is not None
        weights = base + candidate.alpha * alone.residual
        expected = accuracy(task.validation.image_features, weights, task.validation.labels)
        assert candidate.val_accuracy == pytest.approx(expected)
        if candidate.alpha == chosen.fit.alpha:
            assert np.allclose(chosen.fit.residual, alone.residual, rtol=1e-4, atol=1e-7)


def test_ties_go_to_the_lower_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0])

    def tie(task: FitTask, *_: object) -> Candidate:
        return Candidate(task.recipe.alpha, 2e-3, 5e-4, 50.0, next(losses))

    monkeypatch.setattr("taskres_cache.methods.search._candidate", tie)
    task, base = task_and_base()
    (chosen,) = search_residuals([task], 100.0, CPU)
    assert chosen.fit.alpha == pytest.approx(alpha_grid(base)[2])


def test_different_validation_labels_choose_different_alphas() -> None:
    chosen = {
        search_residuals([task], 100.0, CPU)[0].fit.alpha
        for task, _ in (task_and_base(val_labels_shuffled=shuffled) for shuffled in (None, 1, 2, 3))
    }
    assert len(chosen) > 1


def test_alpha_learning_rate_and_weight_decay_are_chosen_together() -> None:
    recipe = Recipe(batch_size=16).searching(alphas=(0.5, 2.0), lrs=(1e-3, 2e-2), weight_decays=(0.0, 0.05))
    task, base = task_and_base(recipe=recipe)
    (chosen,) = search_residuals([task], 100.0, CPU)
    assert len(chosen.candidates) == len(candidates_of(recipe, base)) == 8
    assert len({candidate.val_loss for candidate in chosen.candidates}) == 8  # every value has an effect
    assert chosen.best == max(chosen.candidates, key=lambda candidate: candidate.rank)
    alone = Recipe(batch_size=16, alpha=chosen.best.alpha, lr=chosen.best.lr, weight_decay=chosen.best.weight_decay)
    (expected,) = fit_residuals([FitTask(task.training, alone, 20, 1, base=base)], 100.0, CPU)
    assert np.allclose(chosen.fit.residual, expected.residual, rtol=1e-4, atol=1e-7)
    assert chosen.fit.alpha == chosen.best.alpha
    assert len(candidates_of(Recipe(), base)) == 1


def test_all_candidates_of_all_tasks_are_trained_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(tasks: list[FitTask], *rest: Any) -> list[Fit]:
        calls.append(len(tasks))
        return try_residuals(tasks, *rest)

    monkeypatch.setattr("taskres_cache.methods.search.try_residuals", counted)
    recipe = Recipe().searching(lrs=(1e-3, 2e-2))
    search_residuals([task_and_base(seed=seed, recipe=recipe)[0] for seed in (1, 2)], 100.0, CPU)
    assert calls == [2 * 7 * 2 * 3]


def test_a_fit_that_diverges_is_not_chosen() -> None:
    task, _ = task_and_base(recipe=Recipe(lrs=(1e300, 2e-3)))
    (chosen,) = search_residuals([task], 100.0, CPU)
    assert chosen.best.lr == 2e-3
    assert chosen.candidates[0].val_accuracy is None
    with pytest.raises(FitError, match="all 2 candidates diverged"):
        search_residuals([task_and_base(recipe=Recipe(lrs=(1e300, 1e299)))[0]], 100.0, CPU)


@pytest.mark.parametrize("kind", ["image", "both"])
def test_candidates_are_scored_with_their_image_residual(kind: str) -> None:
    task, base = task_and_base(recipe=Recipe(residual=kind, alpha_rule="auto", alphas=(1.0, 5.0), lr=0.05))
    (chosen,) = search_residuals([task], 100.0, CPU)
    assert task.validation is not None
    assert chosen.fit.image_residual is not None
    alpha, features = chosen.fit.alpha, task.validation.image_features
    weights, shift = base + alpha * chosen.fit.residual, alpha * chosen.fit.image_residual
    expected = accuracy(features, weights, task.validation.labels, shift)
    assert chosen.best.val_accuracy == pytest.approx(expected)
    assert np.any(chosen.fit.residual) == (kind == "both")


def test_tasks_are_searched_independently() -> None:
    first, _ = task_and_base(seed=1)
    second, _ = task_and_base(seed=2, val_labels_shuffled=1)
    together = search_residuals([first, second], 100.0, CPU)
    alone = [search_residuals([task], 100.0, CPU)[0] for task in (first, second)]
    assert [chosen.fit.alpha for chosen in together] == [chosen.fit.alpha for chosen in alone]


def test_a_search_needs_validation_images() -> None:
    task, base = task_and_base()
    empty = ValidationSet(np.zeros((0, 16), np.float32), np.zeros(0, np.int64))
    for validation in (None, empty):
        without = FitTask(task.training, task.recipe, 20, 1, validation, base=base)
        with pytest.raises(OptionError, match="alpha auto and --search need validation images"):
            search_residuals([without], 100.0, CPU)


def test_test_features_are_not_passed_in() -> None:
    assert set(signature(search_residuals).parameters) == {"tasks", "logit_scale", "device"}
    assert {field.name for field in fields(FitTask)} == {"training", "validation", "recipe", "epochs", "seed", "base"}
    assert {field.name for field in fields(TrainingSet)} == {"directions", "lengths", "labels"}
    assert {field.name for field in fields(ValidationSet)} == {"image_features", "labels"}


def test_the_largest_alpha_is_noticed() -> None:
    tried = [Candidate(alpha, 2e-3, 5e-4, 50.0, 1.0) for alpha in (0.5, 1.0, 4.0)]
    assert largest_alpha_won(tried[2], tried)
    assert not largest_alpha_won(tried[1], tried)
    assert not largest_alpha_won(tried[0], tried[:1])
