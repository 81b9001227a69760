"""Which epoch of a fit is kept: the last, as in the paper, or the best on val images.

Axes: K fits of a stack, M validation images, C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from taskres_cache.methods.task_residual.step import Step


@dataclass(frozen=True)
class Kept:
    """What each fit came to, by name, and after how many epochs."""

    values: list[dict[str, Tensor]]
    epochs: list[int]


class LastEpoch:
    """Keeps what the last epoch leaves."""

    def has_enough(self, step: Step) -> bool:
        """Return False: no epoch is looked at."""
        return False

    def kept(self, step: Step, fits: int, epochs: int) -> Kept:
        """Return what is to be kept of so many fits after so many epochs."""
        return Kept([step.values(fit) for fit in range(fits)], [epochs] * fits)


class BestEpoch:
    """Keeps each fit's epoch of the best val accuracy (ties: the lower val loss), until its patience is at an end.

    Parameters
    ----------
    patience : epochs without a better one after which a fit is done.
    validations : (K,) features (M, D), un-normalised, and labels (M,).
    """

    def __init__(self, patience: int, validations: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._patience, self._validations = patience, validations
        self._seen = 0
        self._epochs = [0] * len(validations)
        self._scores = [(-1.0, 0.0)] * len(validations)
        self._values: list[dict[str, Tensor]] = [{} for _ in validations]

    def has_enough(self, step: Step) -> bool:
        """Look at the epoch that has just ended; return whether every fit's patience is at an end."""
        self._seen += 1
        for fit, best in enumerate(self._epochs):
            if self._seen - best > self._patience:
                continue  # done, and only here still because others of its stack are not
            reached = step.head(fit).score(*self._validations[fit])
            if reached > self._scores[fit]:
                self._scores[fit], self._epochs[fit] = reached, self._seen
                self._values[fit] = {name: value.clone() for name, value in step.values(fit).items()}
        return all(self._seen - best >= self._patience for best in self._epochs)

    def kept(self, step: Step, fits: int, epochs: int) -> Kept:
        """Return what is to be kept of so many fits after so many epochs."""
        return Kept(self._values, self._epochs)
