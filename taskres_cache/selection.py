"""Choosing alpha by validation images, never by anything else: test features are not even handed in.

Axes: C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from taskres_cache.errors import OptionError
from taskres_cache.fitting import Fit, FitTask, fit_residuals
from taskres_cache.residual import classifier, count_correct, mean_loss

PAPER_ALPHA = 0.5
OPENAI_BASE_RMS = 0.3  # of a coordinate of OpenAI's text features, for which the paper's alpha is right
ALPHA_MULTIPLES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Candidate:
    """An alpha that was tried, with the val accuracy in percent and the val loss that it came to."""

    alpha: float
    val_accuracy: float
    val_loss: float


@dataclass(frozen=True)
class Chosen:
    """The fit of the alpha that val chose, and all that were tried."""

    fit: Fit
    candidates: tuple[Candidate, ...]


def alpha_grid(base: np.ndarray) -> tuple[float, ...]:
    """Return the alphas to try for a base (C, D), to three digits: multiples of the paper's, scaled to the base.

    The residual moves by about the learning rate a step whatever the base, so that what alpha does depends on the
    size of the base's coordinates. At OpenAI's size the grid holds the paper's 0.5.
    """
    own = PAPER_ALPHA * float(np.sqrt(np.mean(np.square(base, dtype=np.float64)))) / OPENAI_BASE_RMS
    return tuple(float(f"{multiple * own:.3g}") for multiple in ALPHA_MULTIPLES)


def fit_with_chosen_alpha(
    tasks: Sequence[FitTask], base: np.ndarray, logit_scale: float, device: torch.device
) -> list[Chosen]:
    """Fit every task with every alpha of the grid, and return each task's fit of the best val accuracy.

    Ties go to the lower val loss.

    Parameters
    ----------
    tasks : with validation images; the alpha of their recipes is not used.
    base, logit_scale, device : see `fitting.fit_residuals`.

    Raises
    ------
    OptionError : a task without validation images.
    """
    if any(task.validation is None or len(task.validation.labels) == 0 for task in tasks):
        raise OptionError("alpha auto needs validation images to choose by, and this split has none; pass a number")
    grid = alpha_grid(base)
    tried = [replace(task, recipe=task.recipe.changed(alpha=alpha)) for task in tasks for alpha in grid]
    fits = fit_residuals(tried, base, logit_scale, device)
    candidates = [_candidate(task, fit, base, logit_scale, device) for task, fit in zip(tried, fits, strict=True)]
    chosen = []
    for start in range(0, len(tried), len(grid)):
        own = range(start, start + len(grid))
        best = max(own, key=lambda number: (candidates[number].val_accuracy, -candidates[number].val_loss))
        chosen.append(Chosen(fits[best], tuple(candidates[number] for number in own)))
    return chosen


def _candidate(task: FitTask, fit: Fit, base: np.ndarray, logit_scale: float, device: torch.device) -> Candidate:
    assert task.validation is not None
    arrays = (task.validation.image_features, task.validation.labels, fit.residual, base)
    features, labels, residual, fixed_base = (torch.from_numpy(array).to(device) for array in arrays)
    features, labels = features.to(residual.dtype), labels.to(torch.int64)
    weights = classifier(fixed_base, residual, fit.alpha)[None]  # (1, C, D)
    accuracy = 100.0 * count_correct(features, labels, weights).item() / len(labels)
    return Candidate(fit.alpha, accuracy, mean_loss(features, labels, weights, logit_scale).item())
