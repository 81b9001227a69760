"""One optimisation step of K fits at once: two products, and everything else in place.

Nothing goes through autograd, no array of a product's size is allocated twice, and the host waits for nothing.

Axes: K fits, B images of a batch, C classes, D embedding, W width of the text tower.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from taskres_cache.heads import Head, add_residual
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
    """The steps of K fits of one shape, whatever it is that they train.

    Parameters
    ----------
    directions, lengths : (rows, D) normalised image features and (rows,) their lengths before, those of several
        training sets one below the other; the directions' floating type is that of the products' operands.
    batch : the arrays to work in; the likelihoods and the gradients of the parts follow from it.
    parts : what is trained, by name.
    alpha : of the residuals among the parts; None where there are none.
    weight_decays : (K,).

    Notes
    -----
    With `v = w/|w|`, cosines `<f, v>` and `e = softmax - onehot`, the mean cross-entropy has the gradient
    `dL/dw = s/B * (sum_b e f - v * sum_b e <f, v>) / |w|`. The products run on `w` as it is: division by `|w|` is a
    scaling of columns of (B, C). What follows for each part stands in `tuned`.
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
        rows : (K, B) of the directions.
        labels : (K, B, 1) int64, those of the rows.
        likelihoods : (K, B, 1), written: the probability that each image's own class had.
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
        """Write the logits and, where the errors are to be, the softmax of the batch."""
        batch = self._batch
        torch.linalg.vector_norm(batch.weights, dim=-1, keepdim=True, out=batch.scale)  # (K, C, 1)
        batch.scale.reciprocal_().mul_(batch.logit_scale)
        multiply(batch.images, batch.weights.mT, batch.logits)  # (K, B, C)
        batch.logits.mul_(batch.scale.mT)
        torch.softmax(batch.logits, dim=-1, out=batch.errors)  # (K, B, C)

    def values(self, fit: int) -> dict[str, Tensor]:
        """Return what a fit has come to so far, part by part and alpha; the tensors themselves, which change."""
        alpha = {} if self.alpha is None else {"alpha": self.alpha.value[fit]}
        return {name: part.value[fit] for name, part in self.parts.items()} | alpha

    @abstractmethod
    def head(self, fit: int) -> Head:
        """Return the classifier of a fit as it is now."""

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set each fit's learning rate."""
        for optimiser, rate in zip(self._optimisers, rates, strict=True):
            optimiser.set_rate(rate)

    def restart(self) -> None:
        """Go back to where the fits began: what a rehearsal did is forgotten."""
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
    """The steps of K residuals: of the text, the image side, or both, as the recipes say.

    Parameters
    ----------
    directions, lengths : see `Step`.
    base : (C, D), or (K, C, D) for bases of their own, un-normalised; its floating type is the one that everything is
        computed in.
    logit_scale : the multiplier s of the cosines.
    recipes : (K,) of one alpha rule and one kind of residual; alpha, rate and decay are each fit's own.
    batch_size : B.
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
        # The image side first: on the way back the text side uses up what it looks at.
        image: dict[str, Part] = {} if kind == "text" else {"image_residual": ImageResidual(alpha, batch)}
        text: dict[str, Part] = {} if kind == "image" else {"residual": TextResidual(base, alpha, batch)}
        super().__init__(directions, lengths, batch, image | text, alpha, [recipe.weight_decay for recipe in recipes])
        self._base = base.expand_as(batch.weights)

    def head(self, fit: int) -> Head:
        """Return the classifier of a fit: `base + alpha * residual`, and `alpha * image_residual` if it trains one."""
        values = self.values(fit)
        alpha, base = values["alpha"], self._base[fit]
        weights = add_residual(base, values["residual"], alpha) if "residual" in values else base
        shift = alpha * values["image_residual"] if "image_residual" in values else None
        return Head(weights, self._batch.logit_scale, shift)


class ProjectionStep(Step):
    """The steps of K text projections, as an enhanced base has them.

    Parameters
    ----------
    directions, lengths : see `Step`.
    pre_projection, projection : (C, W) and (W, D), whose product is the base to start from.
    logit_scale, recipes, batch_size : see `ResidualStep`.
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

    def head(self, fit: int) -> Head:
        """Return the base (C, D) that the projection of a fit yields."""
        return Head(self._pre_projection @ self.values(fit)["projection"], self._batch.logit_scale)


class FusedAdam:
    """torch's fused Adam, decay added to the gradient (not AdamW), over gradients that are written in place.

    The functional form, since the optimiser's own bookkeeping takes as long as a step of a small fit.

    Parameters
    ----------
    parameters, gradients : of equal shapes; both are kept, and read or written at every step.
    weight_decay : times the parameter, added to its gradient.
    """

    def __init__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], weight_decay: float) -> None:
        self._parameters, self._gradients, self._weight_decay = list(parameters), list(gradients), weight_decay
        self._means = [torch.zeros_like(one) for one in parameters]
        self._squares = [torch.zeros_like(one) for one in parameters]
        self._steps = [torch.zeros((), device=one.device) for one in parameters]
        on_gpu = parameters[0].is_cuda  # where a captured step has its rate in a tensor, for the host to write another
        self._rate: float | Tensor = torch.zeros((), device=parameters[0].device) if on_gpu else 0.0

    def step(self) -> None:
        """Move the parameters against their gradients."""
        adam(
            self._parameters, self._gradients, self._means, self._squares, [], self._steps,
            fused=True, foreach=False, capturable=isinstance(self._rate, Tensor), amsgrad=False, maximize=False,
            beta1=ADAM_BETAS[0], beta2=ADAM_BETAS[1], lr=self._rate, weight_decay=self._weight_decay, eps=ADAM_EPS,
        )  # fmt: skip

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the steps to come."""
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        else:
            self._rate = rate

    def restart(self) -> None:
        """Forget every step."""
        for state in (*self._means, *self._squares, *self._steps):
            state.zero_()
