"""Small training problems for the tests of the training loop."""

import numpy as np
import torch

from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import Fit, FitTask
from taskres_cache.methods.training_sets import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe
from tests.by_hand import train

CPU = torch.device("cpu")
SCALE = 100.0


def few_shot_problem(count: int, classes: int = 5, dim: int = 12) -> tuple[TrainingSet, np.ndarray]:
    """Return a training set and a base, with classes far enough apart for gradients that are not tiny."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, dim))
    features = 5 * centres[labels] + 15 * rng.normal(size=(count, dim))
    return TrainingSet.from_features(features, labels), 0.3 * (centres + 0.5 * rng.normal(size=(classes, dim)))


def problem_with_validation() -> tuple[TrainingSet, ValidationSet, np.ndarray]:
    """Return 40 training and 50 validation images, and a random base, so that there is much to learn."""
    both, _ = few_shot_problem(90)
    base = 0.3 * np.random.default_rng(8).normal(size=(5, 12))
    features, labels = both.directions[0], both.labels
    return TrainingSet.from_features(features[:40], labels[:40]), ValidationSet(features[40:], labels[40:]), base


def fit_alone(training: TrainingSet, base: np.ndarray, recipe: Recipe, epochs: int, seed: int) -> Fit:
    return fit_residuals([FitTask(training, recipe, epochs, seed, base=base)], SCALE, CPU)[0]


def reference_residual(
    training: TrainingSet, base: np.ndarray, recipe: Recipe, epochs: int, seed: int, stop: int | None = None
) -> np.ndarray:
    """Return the residual that the second implementation trains with the same recipe."""
    text = torch.from_numpy(base)
    residual = torch.nn.Parameter(torch.zeros_like(text))
    train(
        [residual],
        lambda: text + recipe.alpha * residual,
        training.directions,
        training.labels,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        epochs=epochs,
        batch=recipe.batch_size,
        seed=seed,
        logit_scale=SCALE,
        stop=stop,
    )
    return residual.detach().numpy()
