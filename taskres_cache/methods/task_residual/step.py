"""One optimisation step of K fits at once: two matrix products, and everything else in place.

There is no autograd, no array of a product's size is allocated twice, and the host never waits for the device.

Axes: K fits, B images of a batch, C classes, D embedding, W width of the text tower.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from taskres_cache.heads.formulas import add_residual
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.task_residual.parts import (
    Alpha,
    Batch,
    ImageResidual,
    Part,
    TextProjection,
    TextResidual,
    multiply,
)
from taskres_cache.recipe import Recipe

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


class Step(ABC):
    """The steps of K fits of one shape.

    Parameters
    ----------
    directions : Tensor of shape (rows, D)
        Normalised image features, in the type of the products' operands; several training sets one below the other.
    lengths : Tensor of shape (rows,)
        Their lengths before normalising.
    batch : Batch
        Buffers that the parts work in.
    parts : mapping of str to Part
        What is trained, by name.
    alpha : Alpha or None
        Weights of the residuals among the parts; None if there are none.
    weight_decays : sequence of float, of length K
        Weight decay of each fit.

    Notes
    -----
    With `v = w/|w|`, cosines `<f, v>` and `e = softmax - onehot`, the mean cross-entropy has the gradient
    `dL/dw = s/B * (sum_b e f - v * sum_b e <f, v>) / |w|`. The products use the un-normalised `w`: division by `|w|`
    scales the columns of (B, C). The gradient of each part is in `parts.py`.
    """

    def __init__(
        self,
        directions: Tensor,
        lengths: Tensor,
        batch: Batch,
        parts: Mapping[str, Part],
        alpha: Alpha | None,
        weight_decays: Sequence[float],
    ) -> None:
        self.parts, self.alpha = dict(parts), alpha
        self._directions, self._lengths, self._batch = directions, lengths, batch
        self._minus_one = batch.errors.new_full((*batch.errors.shape[:2], 1), -1.0)
        self._optimisers = [self._optimiser(fit, weight_decay) for fit, weight_decay in enumerate(weight_decays)]

    def __call__(self, rows: Tensor, labels: Tensor, likelihoods: Tensor) -> None:
        """Take one step.

        Parameters
        ----------
        rows : Tensor of shape (K, B), int64
            Rows of the directions.
        labels : Tensor of shape (K, B, 1), int64
            Labels of the rows.
        likelihoods : Tensor of shape (K, B, 1)
            Output: the probability of each image's label.
        """
        batch, flat = self._batch, rows.reshape(-1)
        torch.index_select(self._directions, 0, flat, out=batch.images.view(len(flat), -1))
        torch.index_select(self._lengths, 0, flat, out=batch.lengths.view(-1))
        for part in self.parts.values():
            part.apply(batch)
        self._forward()
        torch.gather(batch.errors, -1, labels, out=likelihoods)
        batch.errors.scatter_add_(-1, labels, self._minus_one)  # softmax - onehot
        if self.alpha is not None:
            self.alpha.gradient.zero_()
        for part in self.parts.values():
            part.pull_back(batch)
        for optimiser in self._optimisers:
            optimiser.step()

    def _forward(self) -> None:
        """Compute the logits of the batch, and their softmax in the buffer of the errors."""
        batch = self._batch
        torch.linalg.vector_norm(batch.weights, dim=-1, keepdim=True, out=batch.scale)  # (K, C, 1)
        batch.scale.reciprocal_().mul_(batch.logit_scale)
        multiply(batch.images, batch.weights.mT, batch.logits)  # (K, B, C)
        batch.logits.mul_(batch.scale.mT)
        torch.softmax(batch.logits, dim=-1, out=batch.errors)  # (K, B, C)

    def values(self, fit: int) -> dict[str, Tensor]:
        """Return the current parts and alpha of a fit by name; views, which later steps change."""
        alpha = {} if self.alpha is None else {"alpha": self.alpha.value[fit]}
        return {name: part.value[fit] for name, part in self.parts.items()} | alpha

    @abstractmethod
    def head(self, fit: int) -> CosineHead:
        """Return the current classifier of a fit."""

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each fit."""
        for optimiser, rate in zip(self._optimisers, rates, strict=True):
            optimiser.set_rate(rate)

    def restart(self) -> None:
        """Reset all fits to their initial state, as after a warm-up step."""
        for part in self.parts.values():
            part.restart()
        for optimiser in self._optimisers:
            optimiser.restart()
        if self.alpha is not None:
            self.alpha.restart()

    def _optimiser(self, fit: int, weight_decay: float) -> "FusedAdam":
        parameters = [part.value[fit] for part in self.parts.values()]
        gradients = [part.gradient[fit] for part in self.parts.values()]
        if self.alpha is not None and self.alpha.learns:
            parameters, gradients = [*parameters, self.alpha.value[fit]], [*gradients, self.alpha.gradient[fit]]
        return FusedAdam(parameters, gradients, weight_decay)


class ResidualStep(Step):
    """The steps of K residuals: of the text side, the image side, or both.

    Parameters
    ----------
    directions, lengths : Tensor
        As in `Step`.
    base : Tensor of shape (C, D) or (K, C, D)
        Un-normalised, shared or per fit. Its floating type is used for all computation.
    logit_scale : float
        Multiplier s of the cosines.
    recipes : sequence of Recipe, of length K
        Of one alpha rule and one kind of residual; alpha, learning rate and weight decay may differ.
    batch_size : int
        B.
    """

    def __init__(
        self,
        directions: Tensor,
        lengths: Tensor,
        base: Tensor,
        logit_scale: float,
        recipes: Sequence[Recipe],
        batch_size: int,
    ) -> None:
        batch = Batch.empty(directions, (len(recipes), batch_size, base.shape[-2]), base, logit_scale)
        alpha, kind = Alpha(recipes, batch_size, base), recipes[0].residual
        # The image side first: the gradient of the text side overwrites what that of the image side reads.
        image: dict[str, Part] = {} if kind == "text" else {"image_residual": ImageResidual(alpha, batch)}
        text: dict[str, Part] = {} if kind == "image" else {"residual": TextResidual(base, alpha, batch)}
        super().__init__(directions, lengths, batch, image | text, alpha, [recipe.weight_decay for recipe in recipes])
        self._base = base.expand_as(batch.weights)

    def head(self, fit: int) -> CosineHead:
        """Return the current classifier of a fit: weights `base + alpha * residual`, shift `alpha * image_residual`."""
        values = self.values(fit)
        alpha, base = values["alpha"], self._base[fit]
        weights = add_residual(base, values["residual"], alpha) if "residual" in values else base
        shift = alpha * values["image_residual"] if "image_residual" in values else None
        return CosineHead(weights, self._batch.logit_scale, shift)


class ProjectionStep(Step):
    """The steps of K text projections of enhanced bases.

    Parameters
    ----------
    directions, lengths : Tensor
        As in `Step`.
    pre_projection : Tensor of shape (C, W)
        Input of the projection, mean over templates.
    projection : Tensor of shape (W, D)
        The projection to start from.
    logit_scale, recipes, batch_size : float, sequence of Recipe, int
        As in `ResidualStep`.
    """

    def __init__(
        self,
        directions: Tensor,
        lengths: Tensor,
        pre_projection: Tensor,
        projection: Tensor,
        logit_scale: float,
        recipes: Sequence[Recipe],
        batch_size: int,
    ) -> None:
        base = pre_projection @ projection
        batch = Batch.empty(directions, (len(recipes), batch_size, len(base)), base, logit_scale)
        parts = {"projection": TextProjection(pre_projection, projection, batch)}
        super().__init__(directions, lengths, batch, parts, None, [recipe.weight_decay for recipe in recipes])
        self._pre_projection = pre_projection

    def head(self, fit: int) -> CosineHead:
        """Return the base (C, D) of the current projection of a fit as a classifier."""
        return CosineHead(self._pre_projection @ self.values(fit)["projection"], self._batch.logit_scale)


class FusedAdam:
    """torch's fused Adam over gradients that are written in place; weight decay is added to the gradient (not AdamW).

    It uses the functional form: the bookkeeping of `torch.optim.Adam` takes as long as a step of a small fit.

    Parameters
    ----------
    parameters, gradients : sequence of Tensor
        Of equal shapes; every step reads the gradients and writes the parameters.
    weight_decay : float
        Times the parameter, added to its gradient.
    """

    def __init__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], weight_decay: float) -> None:
        self._parameters, self._gradients, self._weight_decay = list(parameters), list(gradients), weight_decay
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        self._steps = [torch.zeros((), device=parameter.device) for parameter in parameters]
        on_gpu = parameters[0].is_cuda  # a captured step reads its learning rate from a tensor, which the host rewrites
        self._rate: float | Tensor = torch.zeros((), device=parameters[0].device) if on_gpu else 0.0

    def step(self) -> None:
        """Update the parameters."""
        adam(
            self._parameters, self._gradients, self._means, self._squares, [], self._steps,
            fused=True, foreach=False, capturable=isinstance(self._rate, Tensor), amsgrad=False, maximize=False,
            beta1=ADAM_BETAS[0], beta2=ADAM_BETAS[1], lr=self._rate, weight_decay=self._weight_decay, eps=ADAM_EPS,
        )  # fmt: skip

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        else:
            self._rate = rate

    def restart(self) -> None:
        """Reset the moments and step counts."""
        for state in (*self._means, *self._squares, *self._steps):
            state.zero_()
