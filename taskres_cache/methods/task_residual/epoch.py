"""The steps of one epoch, one after the other; on a GPU as one graph that the host launches as a whole.

Axes: K fits, B images of a batch.
"""

import warnings

import torch
from torch import Tensor

from taskres_cache.methods.task_residual.step import Step

CAPTURED_STEPS = 512  # the longest epoch that is captured


class Epoch:
    """All steps of an epoch over buffers that stay where they are.

    Parameters
    ----------
    step : what takes one step.
    labels : (rows,) int64 of the step's directions.
    shape : (K, steps, B).
    """

    def __init__(self, step: Step, labels: Tensor, shape: tuple[int, int, int]) -> None:
        self._step, self._labels = step, labels
        self._rows = labels.new_zeros(shape)  # (K, steps, B)
        self._row_labels = labels.new_zeros(*shape, 1)
        value = next(iter(step.parts.values())).value
        self._likelihoods = value.new_ones(*shape, 1)
        self._graph = self._captured() if labels.is_cuda and shape[1] <= CAPTURED_STEPS else None

    def run(self, order: Tensor) -> Tensor:
        """Take the steps over rows (K, steps, B), and return each fit's mean loss (K,).

        A likelihood that is too small for its type counts as the smallest one, so that a loss beyond 87 reads 87.
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
        """Return the epoch as a CUDA graph: one launch an epoch instead of some twenty a step."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with warnings.catch_warnings(), torch.cuda.stream(beside):
            warnings.simplefilter("ignore")
            # A rehearsal, in which the libraries set up what cannot be set up while a graph is recorded.
            self._step(self._rows[:, 0], self._row_labels[:, 0], self._likelihoods[:, 0])
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._take_steps()
        self._step.restart()
        return graph
