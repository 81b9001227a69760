"""What the trainer is given and what it returns: tasks and fits.

Axes: C classes, D embedding, W width of the text tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from taskres_cache.methods.training_sets import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe


@dataclass(frozen=True)
class Task:
    """One few-shot split and how to train on it.

    Parameters
    ----------
    training : TrainingSet
        Few-shot features and labels.
    recipe : Recipe
        How to train; its alpha is the one to use, or to start from.
    epochs : int
        Passes over the training set.
    seed : int
        Seed of the order of batches; it gives the same order on every device.
    validation : ValidationSet, optional
        Needed by recipes that choose something; nothing else may choose.
    """

    training: TrainingSet
    recipe: Recipe
    epochs: int
    seed: int
    validation: ValidationSet | None = None


@dataclass(frozen=True)
class FitTask(Task):
    """A task whose residual is fitted on a base.

    Parameters
    ----------
    base : ndarray of shape (C, D)
        Un-normalised text classifier. Its floating type is used for all computation.
    """

    base: np.ndarray = field(kw_only=True)


@dataclass(frozen=True)
class Fit:
    """A trained residual.

    Parameters
    ----------
    residual : ndarray of shape (C, D)
        Zero if only the image side was trained.
    image_residual : ndarray of shape (D,) or None
        None if only the text side was trained.
    alpha : float
        Weight of both.
    losses : tuple of float
        Mean loss of each epoch.
    kept_epochs : int
        Number of epochs after which the residual was taken.
    seconds : float
        Training time; fits of one stack share its time equally.
    """

    residual: np.ndarray
    image_residual: np.ndarray | None
    alpha: float
    losses: tuple[float, ...]
    kept_epochs: int
    seconds: float

    @property
    def diverged(self) -> bool:
        """True if a loss or a trained value is NaN or infinite."""
        return not _all_finite(self.losses, self.residual, () if self.image_residual is None else self.image_residual)


@dataclass(frozen=True)
class ProjectionFit:
    """A tuned text projection.

    Parameters
    ----------
    projection : ndarray of shape (W, D)
        The tuned projection.
    losses, kept_epochs, seconds : tuple of float, int, float
        As in `Fit`.
    """

    projection: np.ndarray
    losses: tuple[float, ...]
    kept_epochs: int
    seconds: float

    @property
    def diverged(self) -> bool:
        """True if a loss or a trained value is NaN or infinite."""
        return not _all_finite(self.losses, self.projection)


def _all_finite(*arrays: Sequence[float] | np.ndarray) -> bool:
    """Return True if all values are finite."""
    return all(bool(np.isfinite(array).all()) for array in arrays)
