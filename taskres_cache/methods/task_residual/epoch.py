"""The steps of one epoch in sequence; on a GPU as CUDA graphs.

Axes: K fits, B images of a batch.
"""

from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from torch import Tensor

from taskres_cache.methods.task_residual import capture
from taskres_cache.methods.task_residual.step import Step

CAPTURED_STEPS = 512  # of a graph; longer epochs replay it several times


@dataclass(frozen=True)
class _Buffers:
    """Rows, labels and likelihoods of steps that are taken at once, (K, steps, B) and (K, steps, B, 1)."""

    rows: Tensor
    labels: Tensor
    likelihoods: Tensor

    def first(self, count: int) -> "_Buffers":
        """Return the buffers of the first steps."""
        return _Buffers(*(buffer[:, :count] for buffer in vars(self).values()))

    def steps(self) -> list[tuple[Tensor, ...]]:
        """Return the arguments of each step."""
        return list(zip(*(buffer.unbind(1) for buffer in vars(self).values()), strict=True))


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
        records = capture.can_record(labels.device)
        self._at_once = steps_at_once(steps) if records else steps
        value = next(iter(step.parts.values())).value
        rows = labels.new_zeros(fits, self._at_once, batch)
        whole = _Buffers(rows, torch.zeros_like(rows)[..., None], value.new_ones(*rows.shape, 1))
        counts = dict.fromkeys((self._at_once, steps % self._at_once or self._at_once))
        self._buffers = {count: whole.first(count) for count in counts}
        self._arguments = {count: buffers.steps() for count, buffers in self._buffers.items()}
        self._likelihoods = whole.likelihoods if self._at_once == steps else value.new_ones(*shape, 1)
        self._graphs = self._recorded() if records else {}

    def run(self, order: Tensor) -> Tensor:
        """Take the steps over rows (K, steps, B) on the device, and return the mean loss of each fit (K,).

        A likelihood below the smallest number of its type counts as that number, so a loss above 87 reads 87.
        """
        if order.shape[1] == self._at_once:
            self._take(order)
        else:
            pieces = (tensor.split(self._at_once, dim=1) for tensor in (order, self._likelihoods))
            for rows, likelihoods in zip(*pieces, strict=True):
                likelihoods.copy_(self._take(rows))
        smallest = torch.finfo(self._likelihoods.dtype).tiny
        return -self._likelihoods.clamp(min=smallest).log_().mean(dim=(1, 2, 3))

    def _take(self, rows: Tensor) -> Tensor:
        """Take steps over rows (K, steps, B) that fit into the buffers; return the buffer of their likelihoods."""
        count = rows.shape[1]
        buffers = self._buffers[count]
        buffers.rows.copy_(rows)
        buffers.labels.copy_(self._labels[rows][..., None])
        if count in self._graphs:
            self._graphs[count]()
        else:
            self._take_steps(count)
        return buffers.likelihoods

    def _take_steps(self, count: int) -> None:
        for arguments in self._arguments[count]:
            self._step(*arguments)

    def _recorded(self) -> dict[int, capture.Recorded]:
        """Return graphs by their number of steps: one launch instead of about twenty per step."""
        device = self._labels.device
        capture.warm_up(partial(self._step, *self._arguments[self._at_once][0]), device)
        graphs = {count: capture.recorded(partial(self._take_steps, count), device) for count in self._arguments}
        self._step.restart()
        return graphs


def steps_at_once(steps: int) -> int:
    """Return the number of steps per graph: up to CAPTURED_STEPS, in graphs of nearly equal length."""
    return ceil(steps / ceil(steps / CAPTURED_STEPS))
