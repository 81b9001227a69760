"""Which epoch of a fit is kept: the last, as in the paper, or the best on validation images.

Axes: K fits of a stack, M validation images, C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from taskres_cache.heads.head import pairs_on_host
from taskres_cache.methods.task_residual.step import Step


@dataclass(frozen=True)
class KeptValues:
    """What each fit of a stack keeps.

    Parameters
    ----------
    values : list of dict of str to Tensor, of length K
        Trained values by name.
    epochs : list of int, of length K
        Number of epochs after which they were taken.
    """

    values: list[dict[str, Tensor]]
    epochs: list[int]


class LastEpoch:
    """Keeps the values of the last epoch."""

    def should_stop(self, step: Step) -> bool:
        """Return False: every epoch is run."""
        return False

    def kept(self, step: Step, fits: int, epochs: int) -> KeptValues:
        """Return what the fits keep after the last epoch."""
        return KeptValues([step.values(fit) for fit in range(fits)], [epochs] * fits)


class BestEpoch:
    """Keeps each fit's epoch with the best validation accuracy (ties: the lower validation loss).

    Parameters
    ----------
    patience : int
        Epochs without a better one after which a fit is finished.
    validations : sequence of (Tensor, Tensor), of length K
        Un-normalised features (M, D) and labels (M,); fits with the same images share the tensors.
    """

    def __init__(self, patience: int, validations: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._patience, self._validations = patience, validations
        self._finished_epochs = 0
        self._epochs = [0] * len(validations)
        self._scores = [(-1.0, 0.0)] * len(validations)
        self._values: list[dict[str, Tensor]] = [{} for _ in validations]

    def should_stop(self, step: Step) -> bool:
        """Score the epoch that has just ended; return True if every fit is finished."""
        self._finished_epochs += 1
        # The others are finished; they only run on because these are not.
        fits = [fit for fit, best in enumerate(self._epochs) if self._finished_epochs - best <= self._patience]
        measured = [step.head(fit).correct_and_loss(*self._validations[fit]) for fit in fits]
        counts = [len(self._validations[fit][1]) for fit in fits]
        for fit, score in zip(fits, pairs_on_host(measured, counts), strict=True):
            if score > self._scores[fit]:
                self._scores[fit], self._epochs[fit] = score, self._finished_epochs
                self._values[fit] = {name: value.clone() for name, value in step.values(fit).items()}
        return all(self._finished_epochs - best >= self._patience for best in self._epochs)

    def kept(self, step: Step, fits: int, epochs: int) -> KeptValues:
        """Return what the fits keep after the last epoch."""
        return KeptValues(self._values, self._epochs)
