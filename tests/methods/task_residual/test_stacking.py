"""Stacked fits equal the fits alone, and stacks hold fits of one shape."""

import numpy as np
import pytest
import torch

from taskres_cache.errors import OptionError
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.stacking import (
    SHARE_OF_FREE_MEMORY,
    in_rows,
    placed_validations,
    stacks,
    train_stacked,
)
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe
from tests.methods.task_residual.problems import CPU, SCALE, few_shot_problem


def tasks_of_a_grid(dtype: type = np.float64) -> list[FitTask]:
    """Return tasks of three sizes, of which one has two training sets, with four recipes each."""
    base = few_shot_problem(50)[1].astype(dtype)
    images, _ = few_shot_problem(60)
    sets = [TrainingSet.from_features(images.directions[0, :n], images.labels[:n]) for n in (50, 50, 30, 16)]
    sets[1] = TrainingSet.from_features(sets[1].directions[0, ::-1].copy(), sets[1].labels[::-1].copy())
    recipes = [
        Recipe(alpha=0.5, lr=2e-3, weight_decay=5e-4, batch_size=16),
        Recipe(alpha=2.0, lr=5e-3, weight_decay=0.0, batch_size=16),
        Recipe(alpha_rule="learn", batch_size=16),
        Recipe(lr=1e-2, batch_size=16),
    ]
    return [FitTask(training, recipe, 12, seed, base=base) for seed, training in enumerate(sets) for recipe in recipes]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fit_in_a_grid_equals_the_fit_alone(dtype: type) -> None:
    tasks = tasks_of_a_grid(dtype)
    assert max(map(len, stacks(tasks, tasks[0].base.size, CPU))) >= 6  # otherwise nothing is stacked
    for task, stacked in zip(tasks, fit_residuals(tasks, SCALE, CPU), strict=True):
        (alone,) = fit_residuals([task], SCALE, CPU)
        assert np.abs(stacked.residual - alone.residual).max() <= 1e-5 * np.abs(alone.residual).max()
        assert stacked.losses == pytest.approx(alone.losses, rel=1e-5)
        assert stacked.alpha == pytest.approx(alone.alpha, rel=1e-6)
        assert (stacked.alpha == task.recipe.alpha) == (task.recipe.alpha_rule == "fixed")  # exactly


def test_stacks_hold_fits_of_one_shape_up_to_a_size() -> None:
    tasks = tasks_of_a_grid()
    groups = stacks(tasks, tasks[0].base.size, CPU)
    assert sorted(number for stack in groups for number in stack) == list(range(len(tasks)))
    for stack in groups:
        assert len({(len(tasks[n].training.labels), tasks[n].recipe.alpha_rule) for n in stack}) == 1
    assert all(len(stack) == 1 for stack in stacks(tasks, 1000 * 1024, CPU))


def test_fits_with_the_same_number_of_views_are_stacked() -> None:
    rng = np.random.default_rng(1)
    images, base = few_shot_problem(48)
    sets = [
        TrainingSet.from_views(
            np.stack([rng.permutation(images.directions[0], axis=1) for _ in range(count)]), images.labels
        )
        for count in (3, 3, 1)
    ]
    recipe = Recipe(batch_size=16)
    tasks = [FitTask(training, recipe, 7, seed, base=base) for seed, training in enumerate(sets)]
    assert stacks(tasks, base.size, CPU) == [[0, 1], [2]]
    for task, fit in zip(tasks, fit_residuals(tasks, SCALE, CPU), strict=True):
        (alone,) = fit_residuals([task], SCALE, CPU)
        assert np.abs(fit.residual - alone.residual).max() <= 1e-9 * np.abs(alone.residual).max()


def test_a_gpus_free_memory_limits_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    training, base = few_shot_problem(20)  # 5 classes, 12 dimensions, float64
    # Per fit: 8 arrays of 5 x 12, a batch of 20 with three rows of 12 and four of 5, and twice a share of the images.
    bytes_of_fit = 8 * (8 * 60 + 20 * (3 * 12 + 4 * 5) + 2 * 20 * 12 / 10)
    tasks = [FitTask(training, Recipe(), 3, seed, base=base) for seed in range(10)]
    free = {"bytes": 0}
    monkeypatch.setattr("taskres_cache.methods.task_residual.stacking.free_memory", lambda _: free["bytes"])
    for fitting, sizes in ((4, [4, 4, 2]), (100, [10]), (0, [1] * 10)):
        free["bytes"] = int(fitting * bytes_of_fit / SHARE_OF_FREE_MEMORY) + 1
        assert list(map(len, stacks(tasks, base.size, torch.device("cuda")))) == sizes


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_a_stack_that_does_not_fit_is_halved(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[torch.device] = []
    monkeypatch.setattr("taskres_cache.methods.task_residual.stacking.return_unused_memory", returned.append)
    training, base = few_shot_problem(20)
    tasks = [FitTask(training, Recipe(), 3, seed, base=base) for seed in range(7)]
    tried: list[list[int]] = []

    def train(stack: list[FitTask]) -> list[int]:
        tried.append([task.seed for task in stack])
        if len(stack) > 2:
            raise error
        return [10 * task.seed for task in stack]

    assert train_stacked(tasks, base.size, CPU, train) == [0, 10, 20, 30, 40, 50, 60]
    assert tried == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2], [0], [1, 2], [3, 4, 5, 6], [3, 4], [5, 6]]
    assert returned == [CPU] * 3


def test_a_fit_that_does_not_fit_alone_is_one_line() -> None:
    training, base = few_shot_problem(20)

    def train(_: list[FitTask]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OptionError, match="device cpu has too little memory for one fit; free some of its memory"):
        train_stacked([FitTask(training, Recipe(), 3, 1, base=base)], base.size, CPU, train)

    def fail(_: list[FitTask]) -> list[int]:
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        train_stacked([FitTask(training, Recipe(), 3, 1, base=base)], base.size, CPU, fail)


def test_validation_images_that_fits_share_are_sent_once() -> None:
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    sets = [ValidationSet(features, np.arange(6) % 2), ValidationSet(features[:3], np.arange(3) % 2)]
    placed = placed_validations([sets[0], sets[1], sets[0]], torch.zeros(1, dtype=torch.float64))
    assert [tuple(images.shape) for images, _ in placed] == [(6, 4), (3, 4), (6, 4)]
    assert placed[0][0] is placed[2][0]
    assert placed[0][0].dtype == torch.float64
    assert placed[0][1].tolist() == [0, 1, 0, 1, 0, 1]


def test_only_a_gpu_gets_another_layout() -> None:
    by_column = torch.zeros(3, 4).T
    assert in_rows(by_column, torch.device("meta")).is_contiguous()  # any device but the CPU
    assert in_rows(by_column, CPU) is by_column  # the layout decides the last bits
