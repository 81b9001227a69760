"""What a fit tunes: the text residual, the image residual, or the text projection of an enhanced base.

Each says what the batch's classifiers or images become by it, and turns the gradient of those into its own: in closed
form, in place, without autograd.

Axes: K fits, B images of a batch, C classes, D embedding, W width of the text tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from taskres_cache.recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """The arrays that a step works in; they stay where they are, and every step writes them anew.

    Parameters
    ----------
    images : (K, B, D) normalised; their floating type is that of the products' operands.
    lengths : (K, B, 1) of the images before they were normalised.
    weights : (K, C, D) un-normalised classifiers w and, once they have served, the gradient of a text residual.
    scale : (K, C, 1) s/|w|.
    logits, errors : (K, B, C), the errors being softmax - onehot.
    logit_scale : the multiplier s of the cosines.
    """

    images: Tensor
    lengths: Tensor
    weights: Tensor
    scale: Tensor
    logits: Tensor
    errors: Tensor
    logit_scale: float

    @classmethod
    def empty(cls, directions: Tensor, shape: tuple[int, int, int], base: Tensor, logit_scale: float) -> "Batch":
        """Return a batch of shape (K, B, C) whose classifiers are the base (C, D) or (K, C, D)."""
        fits, batch, classes = shape
        dim = directions.shape[-1]
        return cls(
            images=directions.new_empty(fits, batch, dim),
            lengths=base.new_empty(fits, batch, 1),
            weights=base.expand(fits, classes, dim).clone(),
            scale=base.new_empty(fits, classes, 1),
            logits=base.new_empty(shape),
            errors=base.new_empty(shape),
            logit_scale=logit_scale,
        )

    def turn_weights_into_gradient(self, factor: Tensor) -> None:
        """Overwrite the weights with `factor` (K, 1, 1) times the gradient of the summed cross-entropy by them.

        With `v = w/|w|` and errors `e` the gradient is `s * (sum_b e f - v * sum_b e <f, v>) / |w|`: the closed form
        with `<v, g>` taken on the side of the batch, so that no (C, D) array is read for an inner product. With
        `r = s/|w|` and the errors times `factor * r`, the sum `a` of errors times logits over the batch makes the
        radial part `w * a * r / s^2`, which the weights are scaled to before the product is added. Errors and logits
        are lost.
        """
        self.errors.mul_((self.scale * factor).mT)
        radial = self.logits.mul_(self.errors).sum(dim=1)[..., None]  # (K, C, 1)
        self.weights.mul_(radial.mul_(self.scale).mul_(-1 / self.logit_scale**2))
        add_product(self.weights, self.errors.mT, self.images)  # (K, C, D)


class Alpha:
    """The weights alpha (K, 1, 1) of K residuals: fixed, or trained along with them."""

    def __init__(self, recipes: Sequence[Recipe], batch: int, like: Tensor) -> None:
        self.value = like.new_tensor([recipe.alpha for recipe in recipes])[:, None, None]
        self.gradient = torch.zeros_like(self.value)
        self.learns = recipes[0].alpha_rule == "learn"
        # A fixed alpha goes into the gradient beforehand; a learned one only after its own gradient is taken from it.
        self.factor = (torch.ones_like(self.value) if self.learns else self.value) / batch
        self._first = self.value.clone()

    def pull_back(self, gradient: Tensor, residual: Tensor) -> None:
        """Add what a residual (K, .., D) tells of alpha's gradient, and finish the residual's own in place."""
        if self.learns:
            self.gradient.add_(torch.sum(gradient * residual, dim=(1, 2), keepdim=True))
            gradient.mul_(self.value)

    def restart(self) -> None:
        """Go back to the first value."""
        self.value.copy_(self._first)


class Part(Protocol):
    """A tensor that K fits train, its gradient, and what a batch has to do with it."""

    value: Tensor
    gradient: Tensor

    def apply(self, batch: Batch) -> None:
        """Write what the value makes of the batch: its classifiers, or its images."""

    def pull_back(self, batch: Batch) -> None:
        """Write the gradient, given the errors; what the text has to do with comes last, since it uses them up."""

    def restart(self) -> None:
        """Go back to the first value."""


class TextResidual:
    """The residual x (K, C, D) of classifiers `w = base + alpha * x` (TaskRes, section 3.2): `dL/dx = alpha dL/dw`."""

    def __init__(self, base: Tensor, alpha: Alpha, batch: Batch) -> None:
        self.value, self.gradient = torch.zeros_like(batch.weights), batch.weights
        self._base, self._alpha = base, alpha

    def apply(self, batch: Batch) -> None:
        """Write the classifiers."""
        torch.addcmul(self._base, self._alpha.value, self.value, out=batch.weights)

    def pull_back(self, batch: Batch) -> None:
        """Turn the classifiers into the gradient."""
        batch.turn_weights_into_gradient(self._alpha.factor)
        self._alpha.pull_back(self.gradient, self.value)

    def restart(self) -> None:
        """Go back to a residual of zero."""
        self.value.zero_()


class ImageResidual:
    """The residual z (K, 1, D) of images `f + alpha * z`, added before they are normalised (TaskRes, ablations).

    With `u = (f + alpha z)/|f + alpha z|` the gradient is
    `dL/dz = alpha/B * sum_b (sum_c e s v_c - u sum_c e s <u, v_c>) / |f + alpha z|`, where both sums over the batch go
    before the products, which are then of a matrix and a vector.
    """

    def __init__(self, alpha: Alpha, batch: Batch) -> None:
        fits, _, dim = batch.weights.shape
        self.value = batch.weights.new_zeros(fits, 1, dim)
        self.gradient = torch.zeros_like(self.value)
        self._alpha = alpha
        self._moved = batch.weights.new_empty(batch.images.shape)  # in full precision, whatever the products' is

    def apply(self, batch: Batch) -> None:
        """Move the images and normalise them again; their lengths become those after the move."""
        self._moved.copy_(batch.images).addcmul_(self._alpha.value / batch.lengths, self.value)
        growth = torch.linalg.vector_norm(self._moved, dim=-1, keepdim=True)  # (K, B, 1)
        batch.lengths.mul_(growth)
        batch.images.copy_(self._moved.div_(growth))

    def pull_back(self, batch: Batch) -> None:
        """Write the gradient; the batch stays as it is."""
        nearness = batch.lengths.reciprocal()  # (K, B, 1)
        by_class = (batch.errors.mT @ nearness).mul_(batch.scale)  # (K, C, 1)
        by_image = torch.sum(batch.errors * batch.logits, dim=-1, keepdim=True).mul_(nearness)  # (K, B, 1)
        torch.bmm(by_class.mT, batch.weights, out=self.gradient)  # (K, 1, D)
        self.gradient.sub_(by_image.mT @ self._moved).mul_(self._alpha.factor)
        self._alpha.pull_back(self.gradient, self.value)

    def restart(self) -> None:
        """Go back to a residual of zero."""
        self.value.zero_()


class TextProjection:
    """The text tower's projection (K, W, D), of which classifiers `w = p @ projection` follow: `dL/dW = p' dL/dw`.

    `p` (C, W) is the mean over templates of what the projection is fed, which makes `w` the regular base at the start.
    """

    def __init__(self, pre_projection: Tensor, projection: Tensor, batch: Batch) -> None:
        fits, size, _ = batch.logits.shape
        self.value = projection.expand(fits, *projection.shape).clone()
        self.gradient = torch.empty_like(self.value)
        self._pre_projection, self._first = pre_projection, projection
        self._factor = self.value.new_full((fits, 1, 1), 1.0 / size)

    def apply(self, batch: Batch) -> None:
        """Write the classifiers."""
        torch.matmul(self._pre_projection, self.value, out=batch.weights)  # (K, C, D)

    def pull_back(self, batch: Batch) -> None:
        """Turn the classifiers into their gradient, and that into the projection's."""
        batch.turn_weights_into_gradient(self._factor)
        torch.matmul(self._pre_projection.T, batch.weights, out=self.gradient)  # (K, W, D)

    def restart(self) -> None:
        """Go back to the checkpoint's projection."""
        self.value.copy_(self._first)


def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write the K products into `out`; of operands of unlike types the narrower one's is used."""
    if left.dtype == right.dtype:
        torch.bmm(left, right, out=out)
    else:
        out.copy_(torch.bmm(left, right.to(left.dtype)))


def add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the K products to `out`, likewise."""
    if left.dtype == right.dtype:
        out.baddbmm_(left, right)
    else:
        out.add_(torch.bmm(left.to(right.dtype), right))
