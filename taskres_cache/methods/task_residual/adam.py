"""Adam over gradients that are written in place: one call for all fits with the same learning rate and weight decay.

Axes: K fits of a stack.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from taskres_cache.methods.task_residual import capture
from taskres_cache.recipe import Recipe

BETAS = (0.9, 0.999)
EPS = 1e-8
PIECE = 1 << 13  # elements; torch's kernel uses one multiprocessor per tensor or 65,536 elements of it


class StackedAdam:
    """torch's fused Adam over a stack; weight decay is added to the gradient (not AdamW).

    Parameters
    ----------
    values, gradients : sequence of Tensor of shape (K, ...)
        Of equal shapes; every step reads the gradients and writes the values.
    recipes : sequence of Recipe, of length K
        Fits with the same learning rate and weight decay share a call.
    """

    def __init__(self, values: Sequence[Tensor], gradients: Sequence[Tensor], recipes: Sequence[Recipe]) -> None:
        means, squares = ([torch.zeros_like(value) for value in values] for _ in range(2))
        self._moments = [*means, *squares]
        self._fits = fits_by_optimiser(recipes)
        self._calls = []
        for fits in self._fits:
            tensors = [
                [row for one in stacked for row in rows_of_fits(one, fits)]
                for stacked in (values, gradients, means, squares)
            ]
            self._calls.append(_Call(tensors, recipes[fits[0]].weight_decay))

    def step(self) -> None:
        """Update the values."""
        for call in self._calls:
            call.step()

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each fit (K,), without waiting for the device; fits of one call have the same."""
        for call, fits in zip(self._calls, self._fits, strict=True):
            call.set_rate(rates[fits[0]])

    def restart(self) -> None:
        """Reset the moments and step counts."""
        for moment in self._moments:
            moment.zero_()
        for call in self._calls:
            call.restart()


class _Call:
    """One call of the kernel per step.

    `torch.optim.Adam` calls it too, but its bookkeeping takes as long as a step of a small fit, and it keeps a step
    count per tensor.
    """

    def __init__(self, tensors: Sequence[list[Tensor]], weight_decay: float) -> None:
        self._tensors, self._weight_decay = tensors, weight_decay
        device = tensors[0][0].device
        self._step = torch.zeros((), device=device)
        self._steps = [self._step] * len(tensors[0])
        # A recorded step reads its learning rate from a tensor, which is rewritten between replays.
        self._rate: float | Tensor = torch.zeros((), device=device) if capture.can_record(device) else 0.0

    def step(self) -> None:
        self._step.add_(1)
        values, gradients, means, squares = self._tensors
        torch._fused_adam_(
            values, gradients, means, squares, [], self._steps,
            lr=self._rate, beta1=BETAS[0], beta2=BETAS[1], weight_decay=self._weight_decay, eps=EPS,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def set_rate(self, rate: float) -> None:
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        else:
            self._rate = rate

    def restart(self) -> None:
        self._step.zero_()


def fits_by_optimiser(recipes: Sequence[Recipe]) -> list[list[int]]:
    """Return the numbers of the fits with the same learning rate and weight decay."""
    groups: dict[tuple[float, float], list[int]] = {}
    for fit, recipe in enumerate(recipes):
        groups.setdefault((recipe.lr, recipe.weight_decay), []).append(fit)
    return list(groups.values())


def rows_of_fits(stacked: Tensor, fits: Sequence[int]) -> list[Tensor]:
    """Return the rows of some fits in a stacked tensor (K, ...): as they are, on a GPU in pieces of equal size.

    On a CPU the pieces would change the last bits: the kernel computes the end of a tensor without vector instructions.
    """
    if stacked.device.type == "cpu":
        return [stacked[fit] for fit in fits]
    first, last = fits[0], fits[-1]
    together = len(fits) == last - first + 1
    rows = [stacked[first : last + 1]] if together else [stacked[fit] for fit in fits]
    return [piece for row in rows for piece in row.view(-1).split(PIECE)]
