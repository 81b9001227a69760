"""One optimisation step of K fits at once: two matrix products, and everything else in place.

There is no autograd, no array of a product's size is allocated twice, and the host never waits for the device. On a GPU
every operation costs a kernel's start, so operations whose result nobody reads are left out.

Axes: K fits, B images of a batch, C classes, D embedding, W width of the text tower.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taskres_cache.heads.formulas import add_residual
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.task_residual.adam import StackedAdam
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
    recipes : sequence of Recipe, of length K
        Give learning rate and weight decay.

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
        recipes: Sequence[Recipe],
    ) -> None:
        self.parts, self.alpha = dict(parts), alpha
        self._directions, self._batch = directions, batch
        self._lengths = lengths if any(isinstance(part, ImageResidual) for part in self.parts.values()) else None
        self._minus_one = batch.errors.new_full((*batch.errors.shape[:2], 1), -1.0)
        trained: list[Part | Alpha] = [*self.parts.values()]
        if alpha is not None and alpha.learns:
            trained.append(alpha)
        self._adam = StackedAdam([one.value for one in trained], [one.gradient for one in trained], recipes)

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
        if self._lengths is not None:
            torch.index_select(self._lengths, 0, flat, out=batch.lengths.view(-1))
        for part in self.parts.values():
            part.apply(batch)
        self._forward()
        torch.gather(batch.errors, -1, labels, out=likelihoods)
        batch.errors.scatter_add_(-1, labels, self._minus_one)  # softmax - onehot
        if self.alpha is not None and self.alpha.learns:
            self.alpha.gradient.zero_()
        for part in self.parts.values():
            part.pull_back(batch)
        self._adam.step()

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
        """Set the learning rate of each fit (K,); fits with the same learning rate and weight decay have one."""
        self._adam.set_rates(rates)

    def restart(self) -> None:
        """Reset all fits to their initial state, as after a warm-up step."""
        for part in self.parts.values():
            part.restart()
        self._adam.restart()
        if self.alpha is not None:
            self.alpha.restart()


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
        super().__init__(directions, lengths, batch, image | text, alpha, recipes)
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
        super().__init__(directions, lengths, batch, parts, None, recipes)
        self._pre_projection = pre_projection

    def head(self, fit: int) -> CosineHead:
        """Return the base (C, D) of the current projection of a fit as a classifier."""
        return CosineHead(self._pre_projection @ self.values(fit)["projection"], self._batch.logit_scale)
