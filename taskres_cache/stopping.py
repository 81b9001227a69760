"""Which epoch of a fit is kept: the last, as in the paper, or the best on val images.

Axes: K fits of a stack, M validation images, C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from taskres_cache.residual import classifier, count_correct, mean_loss
from taskres_cache.step import ResidualStep


@dataclass(frozen=True)
class Kept:
    """Residuals (K, C, D), alphas (K, 1, 1), and after how many epochs each was taken."""

    residuals: Tensor
    alphas: Tensor
    epochs: list[int]


class LastEpoch:
    """Keeps what the last epoch leaves."""

    def has_enough(self, step: ResidualStep) -> bool:
        """Return False: no epoch is looked at."""
        return False

    def kept(self, step: ResidualStep, epochs: int) -> Kept:
        """Return what is to be kept after so many epochs."""
        return Kept(step.residual, step.alpha, [epochs] * len(step.residual))


class BestEpoch:
    """Keeps each fit's epoch of the best val accuracy (ties: the lower val loss), until its patience is at an end.

    Parameters
    ----------
    patience : epochs without a better one after which a fit is done.
    validations : (K,) features (M, D), un-normalised, and labels (M,).
    base : (C, D).
    logit_scale : the multiplier s of the cosines.
    """

    def __init__(
        self, patience: int, validations: Sequence[tuple[Tensor, Tensor]], base: Tensor, logit_scale: float
    ) -> None:
        self._patience, self._validations, self._base, self._logit_scale = patience, validations, base, logit_scale
        self._seen = 0
        self._epochs = [0] * len(validations)
        self._scores = [(-1.0, 0.0)] * len(validations)
        self._residuals = base.new_zeros(len(validations), *base.shape)
        self._alphas = base.new_zeros(len(validations), 1, 1)

    def has_enough(self, step: ResidualStep) -> bool:
        """Look at the epoch that has just ended; return whether every fit's patience is at an end."""
        self._seen += 1
        for fit, best in enumerate(self._epochs):
            if self._seen - best > self._patience:
                continue  # done, and only here still because others of its stack are not
            score = self._score(fit, classifier(self._base, step.residual[fit], step.alpha[fit]))
            if score > self._scores[fit]:
                self._scores[fit], self._epochs[fit] = score, self._seen
                self._residuals[fit], self._alphas[fit] = step.residual[fit], step.alpha[fit]
        return all(self._seen - best >= self._patience for best in self._epochs)

    def kept(self, step: ResidualStep, epochs: int) -> Kept:
        """Return what is to be kept after so many epochs."""
        return Kept(self._residuals, self._alphas, self._epochs)

    def _score(self, fit: int, weights: Tensor) -> tuple[float, float]:
        """Return the share of images that weights (C, D) get right, and minus their loss; the greater is the better."""
        features, labels = self._validations[fit]
        right = count_correct(features, labels, weights[None]).item() / len(labels)
        return right, -mean_loss(features, labels, weights[None], self._logit_scale).item()
