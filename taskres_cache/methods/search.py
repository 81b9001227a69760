"""Choice of alpha, learning rate and weight decay by validation accuracy; test features are not even passed in.

Axes: C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from taskres_cache.errors import FitError, OptionError
from taskres_cache.heads.formulas import add_residual
from taskres_cache.heads.head import pairs_on_host
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.task_residual.loop import try_residuals
from taskres_cache.methods.task_residual.stacking import placed_validations
from taskres_cache.methods.task_residual.task import Fit, FitTask
from taskres_cache.recipe import Recipe

PAPER_ALPHA = 0.5
OPENAI_BASE_RMS = 0.3  # of the coordinates of OpenAI's text features, for which the paper's alpha was chosen
ALPHA_MULTIPLES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Candidate:
    """One combination that was tried, and its result on the validation images.

    Parameters
    ----------
    alpha, lr, weight_decay : float
        The combination; alpha as it was after the fit.
    val_accuracy : float or None
        In percent; None if the fit diverged.
    val_loss : float or None
        Mean cross-entropy; None if the fit diverged.
    """

    alpha: float
    lr: float
    weight_decay: float
    val_accuracy: float | None
    val_loss: float | None

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key, greater is better: accuracy, then the lower loss."""
        if self.val_accuracy is None or self.val_loss is None:
            return -1.0, 0.0
        return self.val_accuracy, -self.val_loss


@dataclass(frozen=True)
class SearchedFit:
    """The fit with the best validation accuracy.

    Parameters
    ----------
    fit : Fit
        The best fit.
    best : Candidate
        Its combination and result.
    candidates : tuple of Candidate
        Everything that was tried.
    """

    fit: Fit
    best: Candidate
    candidates: tuple[Candidate, ...]


def alpha_grid(base: np.ndarray) -> tuple[float, ...]:
    """Return the alphas to try for a base (C, D), to three digits: multiples of the paper's, scaled to the base.

    The residual moves by about the learning rate per step, whatever the base, so the effect of alpha depends on the
    size of the base's coordinates. At the size of OpenAI's the grid contains the paper's 0.5.
    """
    scaled = PAPER_ALPHA * float(np.sqrt(np.mean(np.square(base, dtype=np.float64)))) / OPENAI_BASE_RMS
    return tuple(float(f"{multiple * scaled:.3g}") for multiple in ALPHA_MULTIPLES)


def largest_alpha_won(best: Candidate, candidates: Sequence[Candidate]) -> bool:
    """Return True if the chosen alpha is the largest of several, so that a larger one may be better."""
    alphas = {candidate.alpha for candidate in candidates}
    return len(alphas) > 1 and best.alpha == max(alphas)


def candidates_of(recipe: Recipe, base: np.ndarray) -> list[Recipe]:
    """Return every recipe to try; only the recipe itself if it leaves nothing to choose."""
    return recipe.candidates(alpha_grid(base)) if recipe.chooses else [recipe]


def count_candidates(recipe: Recipe) -> int:
    """Return how many recipes `candidates_of` returns, for any base."""
    return len(recipe.candidates(ALPHA_MULTIPLES)) if recipe.chooses else 1


def search_residuals(tasks: Sequence[FitTask], logit_scale: float, device: torch.device) -> list[SearchedFit]:
    """Fit every task with every candidate of its recipe, and return the best fit of each task by validation accuracy.

    All candidates of all tasks go through the training loop together. Ties go to the lower validation loss.

    Parameters
    ----------
    tasks : sequence of FitTask
        Tasks with validation images.
    logit_scale : float
        Multiplier of the cosines.
    device : torch.device
        Where to compute.

    Raises
    ------
    OptionError
        A task has no validation images.
    FitError
        All candidates of a task diverged.
    """
    if any(task.validation is None or len(task.validation.labels) == 0 for task in tasks):
        raise OptionError(
            "alpha auto and --search need validation images to choose by, and this split has none; pass one value each "
            "for alpha, lr and weight decay"
        )
    tried = [[replace(task, recipe=recipe) for recipe in candidates_of(task.recipe, task.base)] for task in tasks]
    flat = [task for group in tried for task in group]
    fits = try_residuals(flat, logit_scale, device)
    candidates = iter(zip(fits, _candidates(flat, fits, logit_scale, device), strict=True))
    return [_best([next(candidates) for _ in group]) for group in tried]


def _best(tried: Sequence[tuple[Fit, Candidate]]) -> SearchedFit:
    fits, candidates = zip(*tried, strict=True)
    best = max(range(len(tried)), key=lambda number: candidates[number].rank)
    if candidates[best].val_accuracy is None:
        raise FitError(f"all {len(tried)} candidates diverged; search around a lower lr")
    return SearchedFit(fits[best], candidates[best], candidates)


def _candidates(
    tasks: Sequence[FitTask], fits: Sequence[Fit], logit_scale: float, device: torch.device
) -> list[Candidate]:
    """Measure fits on their validation images; each set and base is sent to the device once, which is awaited once."""
    sound = [(task, fit) for task, fit in zip(tasks, fits, strict=True) if not fit.diverged]
    distinct = {id(task.base): task.base for task, _ in sound}
    bases = {key: torch.from_numpy(base).to(device) for key, base in distinct.items()}
    sets = [task.validation for task, _ in sound if task.validation is not None]
    placed = placed_validations(sets, next(iter(bases.values()))) if sound else []
    measured = [
        _head(fit, bases[id(task.base)], logit_scale).correct_and_loss(*images)
        for (task, fit), images in zip(sound, placed, strict=True)
    ]
    scores = iter(pairs_on_host(measured, [len(one.labels) for one in sets]) if sound else [])
    return [
        _candidate(task, fit, None if fit.diverged else next(scores)) for task, fit in zip(tasks, fits, strict=True)
    ]


def _head(fit: Fit, base: Tensor, logit_scale: float) -> CosineHead:
    """Return the classifier of a fit on the device of its base."""
    weights = add_residual(base, torch.from_numpy(fit.residual).to(base.device), fit.alpha)
    image = fit.image_residual
    shift = None if image is None else fit.alpha * torch.from_numpy(image).to(base.device)
    return CosineHead(weights, logit_scale, shift)


def _candidate(task: FitTask, fit: Fit, score: tuple[float, float] | None) -> Candidate:
    accuracy, minus_loss = score if score is not None else (None, None)
    loss = None if minus_loss is None else -minus_loss
    return Candidate(fit.alpha, task.recipe.lr, task.recipe.weight_decay, accuracy, loss)
