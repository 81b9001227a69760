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


class FusedAdam:
    """torch's fused Adam; weight decay is added to the gradient (not AdamW).

    It calls the kernel itself: the bookkeeping of `torch.optim.Adam` takes as long as a step of a small fit, and keeps
    a step count per tensor.

    Parameters
    ----------
    parameters, gradients : sequence of Tensor
        Of equal shapes; every step reads the gradients and writes the parameters.
    weight_decay : float
        Times the parameter, added to its gradient.
    """

    def __init__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], weight_decay: float) -> None:
        device = parameters[0].device
        self._parameters, self._gradients, self._weight_decay = list(parameters), list(gradients), weight_decay
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        self._step = torch.zeros((), device=device)
        self._steps = [self._step] * len(parameters)
        # A recorded step reads its learning rate from a tensor, which is rewritten between replays.
        self._rate: float | Tensor = torch.zeros((), device=device) if capture.can_record(device) else 0.0

    def step(self) -> None:
        """Update the parameters."""
        self._step.add_(1)
        torch._fused_adam_(
            self._parameters, self._gradients, self._means, self._squares, [], self._steps,
            lr=self._rate, beta1=BETAS[0], beta2=BETAS[1], weight_decay=self._weight_decay, eps=EPS,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps, without waiting for the device."""
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        else:
            self._rate = rate

    def restart(self) -> None:
        """Reset the moments and the step count."""
        for state in (*self._means, *self._squares, self._step):
            state.zero_()


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
