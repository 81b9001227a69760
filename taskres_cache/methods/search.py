"""Choosing alpha, rate and decay by validation images, never by anything else: test features are not even handed in.

Axes: C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from taskres_cache.errors import FitError, OptionError
from taskres_cache.heads import Head
from taskres_cache.methods.task_residual.loop import Fit, FitTask, try_residuals
from taskres_cache.recipe import Recipe

PAPER_ALPHA = 0.5
OPENAI_BASE_RMS = 0.3  # of a coordinate of OpenAI's text features, for which the paper's alpha is right
ALPHA_MULTIPLES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Candidate:
    """What was tried, with the val accuracy in percent and the val loss that it came to; None where it diverged."""

    alpha: float
    lr: float
    weight_decay: float
    val_accuracy: float | None
    val_loss: float | None

    @property
    def rank(self) -> tuple[float, float]:
        """By what candidates are compared, the greater the better: accuracy, then the lower loss."""
        if self.val_accuracy is None or self.val_loss is None:
            return -1.0, 0.0
        return self.val_accuracy, -self.val_loss


@dataclass(frozen=True)
class Chosen:
    """The fit that val chose, what it was fitted with, and all that was tried."""

    fit: Fit
    choice: Candidate
    candidates: tuple[Candidate, ...]


def alpha_grid(base: np.ndarray) -> tuple[float, ...]:
    """Return the alphas to try for a base (C, D), to three digits: multiples of the paper's, scaled to the base.

    The residual moves by about the learning rate a step whatever the base, so that what alpha does depends on the
    size of the base's coordinates. At OpenAI's size the grid holds the paper's 0.5.
    """
    own = PAPER_ALPHA * float(np.sqrt(np.mean(np.square(base, dtype=np.float64)))) / OPENAI_BASE_RMS
    return tuple(float(f"{multiple * own:.3g}") for multiple in ALPHA_MULTIPLES)


def candidates_of(recipe: Recipe, base: np.ndarray) -> list[Recipe]:
    """Return every recipe to be chosen between; one that leaves nothing to choose is the only one."""
    return recipe.candidates(alpha_grid(base)) if recipe.chooses else [recipe]


def fit_by_choice(tasks: Sequence[FitTask], logit_scale: float, device: torch.device) -> list[Chosen]:
    """Fit every task with everything that its recipe leaves open, and return each task's fit of the best val accuracy.

    All candidates of all tasks go through the training loop together. Ties go to the lower val loss.

    Parameters
    ----------
    tasks : with validation images; alpha, rate and decay of their recipes count only where there is no choice of them.
    logit_scale, device : see `fitting.fit_residuals`.

    Raises
    ------
    OptionError : a task without validation images.
    FitError : everything that was tried for a task diverged.
    """
    if any(task.validation is None or len(task.validation.labels) == 0 for task in tasks):
        raise OptionError(
            "alpha auto and --search need validation images to choose by, and this split has none; pass numbers"
        )
    tried = [[replace(task, recipe=recipe) for recipe in candidates_of(task.recipe, task.base)] for task in tasks]
    flat = [task for group in tried for task in group]
    fits = iter(try_residuals(flat, logit_scale, device))
    return [_chosen([(task, next(fits)) for task in group], logit_scale, device) for group in tried]


def _chosen(tried: Sequence[tuple[FitTask, Fit]], logit_scale: float, device: torch.device) -> Chosen:
    candidates = tuple(_candidate(task, fit, logit_scale, device) for task, fit in tried)
    best = max(range(len(tried)), key=lambda number: candidates[number].rank)
    if candidates[best].val_accuracy is None:
        raise FitError(f"all {len(tried)} candidates diverged; search around a lower lr")
    return Chosen(tried[best][1], candidates[best], candidates)


def _candidate(task: FitTask, fit: Fit, logit_scale: float, device: torch.device) -> Candidate:
    """Return what a fit comes to on its val images."""
    assert task.validation is not None
    tried = (fit.alpha, task.recipe.lr, task.recipe.weight_decay)
    if fit.diverged:
        return Candidate(*tried, None, None)
    head = Head.of_arrays(task.base, logit_scale, fit.residual, fit.image_residual, fit.alpha).to(device)
    features = torch.from_numpy(task.validation.image_features).to(head.weights)
    labels = torch.from_numpy(task.validation.labels).to(device, torch.int64)
    accuracy, minus_loss = head.score(features, labels)
    return Candidate(*tried, accuracy, -minus_loss)
