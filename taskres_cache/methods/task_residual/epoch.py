"""The steps of one epoch in sequence; on a GPU as CUDA graphs.

Axes: K fits, B images of a batch.
"""

from functools import partial
from math import ceil

import torch
from torch import Tensor

from taskres_cache.methods.task_residual import capture
from taskres_cache.methods.task_residual.step import Step

CAPTURED_STEPS = 512  # of a graph; longer epochs replay it several times


class Epoch:
    """All steps of an epoch, over buffers whose addresses never change.

    Parameters
    ----------
    step : Step
        Takes one step.
    labels : Tensor of shape (rows,), int64
        Labels of the step's directions.
    shape : (int, int, int)
        K, steps, B.
    """

    def __init__(self, step: Step, labels: Tensor, shape: tuple[int, int, int]) -> None:
        fits, steps, batch = shape
        self._step, self._labels = step, labels
        self._at_once = steps_at_once(steps) if capture.can_record(labels.device) else steps
        self._rows = labels.new_zeros(fits, self._at_once, batch)
        self._row_labels = labels.new_zeros(fits, self._at_once, batch, 1)
        value = next(iter(step.parts.values())).value
        self._taken = value.new_ones(fits, self._at_once, batch, 1)  # likelihoods of the steps taken at once
        self._likelihoods = self._taken if self._at_once == steps else value.new_ones(*shape, 1)
        self._graphs = self._recorded(steps) if capture.can_record(labels.device) else {}

    def run(self, order: Tensor) -> Tensor:
        """Take the steps over rows (K, steps, B) on the device, and return the mean loss of each fit (K,).

        A likelihood below the smallest number of its type counts as that number, so a loss above 87 reads 87.
        """
        for rows, likelihoods in zip(
            order.split(self._at_once, dim=1), self._likelihoods.split(self._at_once, dim=1), strict=True
        ):
            count = rows.shape[1]
            self._rows[:, :count].copy_(rows)
            self._row_labels[:, :count].copy_(self._labels[rows][..., None])
            if count in self._graphs:
                self._graphs[count]()
            else:
                self._take_steps(count)
            if self._likelihoods is not self._taken:
                likelihoods.copy_(self._taken[:, :count])
        smallest = torch.finfo(self._likelihoods.dtype).tiny
        return -self._likelihoods.clamp(min=smallest).log_().mean(dim=(1, 2, 3))

    def _take_steps(self, count: int) -> None:
        """Take the first `count` steps of the buffers."""
        buffers = (buffer[:, :count].unbind(1) for buffer in (self._rows, self._row_labels, self._taken))
        for batch in zip(*buffers, strict=True):
            self._step(*batch)

    def _recorded(self, steps: int) -> dict[int, capture.Recorded]:
        """Return graphs by their number of steps: one launch instead of about twenty per step."""
        device = self._labels.device
        capture.warm_up(partial(self._take_steps, 1), device)
        counts = dict.fromkeys((self._at_once, steps % self._at_once or self._at_once))
        graphs = {count: capture.recorded(partial(self._take_steps, count), device) for count in counts}
        self._step.restart()
        return graphs


def steps_at_once(steps: int) -> int:
    """Return the number of steps per graph: up to CAPTURED_STEPS, in graphs of nearly equal length."""
    return ceil(steps / ceil(steps / CAPTURED_STEPS))
