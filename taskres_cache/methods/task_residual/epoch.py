"""The steps of one epoch in sequence; on a GPU as one CUDA graph.

Axes: K fits, B images of a batch.
"""

import warnings

import torch
from torch import Tensor

from taskres_cache.methods.task_residual.step import Step

CAPTURED_STEPS = 512  # longer epochs are not captured as a graph


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
        self._step, self._labels = step, labels
        self._rows = labels.new_zeros(shape)  # (K, steps, B)
        self._row_labels = labels.new_zeros(*shape, 1)
        value = next(iter(step.parts.values())).value
        self._likelihoods = value.new_ones(*shape, 1)
        self._graph = self._captured() if labels.is_cuda and shape[1] <= CAPTURED_STEPS else None

    def run(self, order: Tensor) -> Tensor:
        """Take the steps over rows (K, steps, B), and return the mean loss of each fit (K,).

        A likelihood below the smallest number of its type counts as that number, so a loss above 87 reads 87.
        """
        self._rows.copy_(order, non_blocking=True)
        self._row_labels.copy_(self._labels[self._rows][..., None])
        if self._graph is None:
            self._take_steps()
        else:
            self._graph.replay()
        smallest = torch.finfo(self._likelihoods.dtype).tiny
        return -self._likelihoods.clamp(min=smallest).log_().mean(dim=(1, 2, 3))

    def _take_steps(self) -> None:
        for batch in zip(self._rows.unbind(1), self._row_labels.unbind(1), self._likelihoods.unbind(1), strict=True):
            self._step(*batch)

    def _captured(self) -> "torch.cuda.CUDAGraph":
        """Return the epoch as a CUDA graph: one launch per epoch instead of about twenty per step."""
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with warnings.catch_warnings(), torch.cuda.stream(side_stream):
            warnings.simplefilter("ignore")
            # A warm-up step: libraries initialise on first use, which cannot happen while a graph is recorded.
            self._step(self._rows[:, 0], self._row_labels[:, 0], self._likelihoods[:, 0])
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._take_steps()
        self._step.restart()
        return graph
