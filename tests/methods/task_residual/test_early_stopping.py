"""Patience: the epoch that is kept, alone and in a stack."""

import numpy as np
import pytest

from taskres_cache.errors import OptionError
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.recipe import Recipe
from tests.by_hand import accuracy, logits, mean_cross_entropy
from tests.methods.task_residual.problems import (
    CPU,
    SCALE,
    few_shot_problem,
    fit_alone,
    problem_with_validation,
    reference_residual,
)


def test_patience_keeps_the_epoch_with_the_best_validation_accuracy() -> None:
    training, validation, base = problem_with_validation()
    recipe = Recipe(lr=0.3, batch_size=16, patience=4)
    (fit,) = fit_residuals([FitTask(training, recipe, 60, 1, validation, base=base)], SCALE, CPU)
    assert 1 < fit.kept_epochs < 60 - 4
    assert len(fit.losses) == fit.kept_epochs + 4

    def score_after(epochs: int) -> tuple[float, float]:
        weights = base + 0.5 * reference_residual(training, base, recipe, 60, 1, stop=epochs)
        features, labels = validation.image_features, validation.labels
        return accuracy(features, weights, labels), -mean_cross_entropy(logits(features, weights, SCALE), labels)

    scores = [score_after(epochs) for epochs in range(1, fit.kept_epochs + 5)]
    assert scores.index(max(scores)) + 1 == fit.kept_epochs
    # The residual equals that of a fit stopped after this many epochs: patience does not change the schedule.
    expected = reference_residual(training, base, recipe, 60, 1, stop=fit.kept_epochs)
    assert np.abs(fit.residual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_patience_in_a_stack_equals_patience_alone() -> None:
    training, validation, base = problem_with_validation()
    recipes = [Recipe(lr=lr, batch_size=16, patience=3) for lr in (0.1, 0.003)]
    tasks = [FitTask(training, recipe, 40, 1, validation, base=base) for recipe in recipes]
    alone = [fit_residuals([task], SCALE, CPU)[0] for task in tasks]
    stacked = fit_residuals(tasks, SCALE, CPU)
    assert [fit.kept_epochs for fit in stacked] == [fit.kept_epochs for fit in alone]
    # The first fit is finished while the second goes on, through an epoch in which the first would have improved again.
    patient = FitTask(training, tasks[0].recipe.changed(patience=39), 40, 1, validation, base=base)
    later = fit_residuals([patient], SCALE, CPU)[0].kept_epochs
    assert alone[0].kept_epochs + 3 < later < alone[1].kept_epochs + 3
    for in_stack, single in zip(stacked, alone, strict=True):
        assert np.allclose(in_stack.residual, single.residual, rtol=1e-6)
        assert len(in_stack.losses) == len(single.losses)


def test_patience_without_validation_images_raises() -> None:
    training, base = few_shot_problem(20)
    with pytest.raises(OptionError, match="patience needs validation images"):
        fit_alone(training, base, Recipe(patience=2), epochs=3, seed=1)
