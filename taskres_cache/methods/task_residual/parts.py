"""The trainable parts: the text residual, the image residual, and the text projection of an enhanced base.

A part computes the classifiers or images of a batch, and its own gradient from theirs: in closed form, in place,
without autograd.

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
    """The buffers of a step; every step overwrites them.

    Parameters
    ----------
    images : Tensor of shape (K, B, D)
        Normalised, in the type of the products' operands.
    lengths : Tensor of shape (K, B, 1)
        Lengths of the images before normalising.
    weights : Tensor of shape (K, C, D)
        Un-normalised classifiers w, later overwritten with their gradient.
    scale : Tensor of shape (K, C, 1)
        s/|w|.
    logits, errors : Tensor of shape (K, B, C)
        The errors are softmax - onehot.
    logit_scale : float
        Multiplier s of the cosines.
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
        """Allocate a batch of shape (K, B, C), whose classifiers are the base (C, D) or (K, C, D)."""
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
        """Overwrite the weights with `factor` (K, 1, 1) times the gradient of the summed cross-entropy.

        With `v = w/|w|` and errors `e` the gradient is `s * (sum_b e f - v * sum_b e <f, v>) / |w|`: the closed form,
        with `<v, g>` computed from the batch, so that no (C, D) array is read for an inner product. With `r = s/|w|`,
        the errors are multiplied by `factor * r`; the sum `a` of errors times logits over the batch gives the radial
        part `w * a * r / s^2`, to which the weights are scaled before the product is added. Errors and logits are
        overwritten.
        """
        self.errors.mul_((self.scale * factor).mT)
        radial = self.logits.mul_(self.errors).sum(dim=1)[..., None]  # (K, C, 1)
        self.weights.mul_(radial.mul_(self.scale).mul_(-1 / self.logit_scale**2))
        add_product(self.weights, self.errors.mT, self.images)  # (K, C, D)


class Alpha:
    """The weights alpha (K, 1, 1) of K residuals: fixed, or trained with them.

    Parameters
    ----------
    recipes : sequence of Recipe, of length K
        Give alpha and its rule; the rule is the same for all.
    batch : int
        B.
    base : Tensor
        Gives the floating type and device.
    """

    def __init__(self, recipes: Sequence[Recipe], batch: int, base: Tensor) -> None:
        self.value = base.new_tensor([recipe.alpha for recipe in recipes])[:, None, None]
        self.gradient = torch.zeros_like(self.value)
        self.learns = recipes[0].alpha_rule == "learn"
        # The gradient is multiplied by a fixed alpha at once; by a learned one only after alpha's gradient was taken.
        self.factor = (torch.ones_like(self.value) if self.learns else self.value) / batch
        self._first = self.value.clone()

    def pull_back(self, gradient: Tensor, residual: Tensor) -> None:
        """Add the contribution of a residual (K, .., D) to alpha's gradient, and finish the residual's own."""
        if self.learns:
            self.gradient.add_(torch.sum(gradient * residual, dim=(1, 2), keepdim=True))
            gradient.mul_(self.value)

    def restart(self) -> None:
        """Reset to the initial value."""
        self.value.copy_(self._first)


class Part(Protocol):
    """A tensor that K fits train, and its gradient."""

    value: Tensor
    gradient: Tensor

    def apply(self, batch: Batch) -> None:
        """Compute the classifiers or the images of the batch from the value."""

    def pull_back(self, batch: Batch) -> None:
        """Compute the gradient from the errors; a text part must come last, as it overwrites them."""

    def restart(self) -> None:
        """Reset to the initial value."""


class TextResidual:
    """The residual x (K, C, D) of classifiers `w = base + alpha * x` (TaskRes, section 3.2): `dL/dx = alpha dL/dw`.

    Parameters
    ----------
    base : Tensor of shape (C, D) or (K, C, D)
        Un-normalised.
    alpha : Alpha
        Weights of the residuals.
    batch : Batch
        Buffers; the weights also hold the gradient.
    """

    def __init__(self, base: Tensor, alpha: Alpha, batch: Batch) -> None:
        self.value, self.gradient = torch.zeros_like(batch.weights), batch.weights
        self._base, self._alpha = base, alpha

    def apply(self, batch: Batch) -> None:
        """Compute the classifiers."""
        torch.addcmul(self._base, self._alpha.value, self.value, out=batch.weights)

    def pull_back(self, batch: Batch) -> None:
        """Overwrite the classifiers with the gradient."""
        batch.turn_weights_into_gradient(self._alpha.factor)
        self._alpha.pull_back(self.gradient, self.value)

    def restart(self) -> None:
        """Reset to a residual of zero."""
        self.value.zero_()


class ImageResidual:
    """The residual z (K, 1, D) of images `f + alpha * z`, added before they are normalised (TaskRes, ablations).

    With `u = (f + alpha z)/|f + alpha z|` the gradient is
    `dL/dz = alpha/B * sum_b (sum_c e s v_c - u sum_c e s <u, v_c>) / |f + alpha z|`. Both sums over the batch come
    before the products, so the products are matrix times vector.

    Parameters
    ----------
    alpha : Alpha
        Weights of the residuals.
    batch : Batch
        Buffers.
    """

    def __init__(self, alpha: Alpha, batch: Batch) -> None:
        fits, _, dim = batch.weights.shape
        self.value = batch.weights.new_zeros(fits, 1, dim)
        self.gradient = torch.zeros_like(self.value)
        self._alpha = alpha
        self._moved = batch.weights.new_empty(batch.images.shape)  # in full precision, unlike the operands

    def apply(self, batch: Batch) -> None:
        """Add the residual to the images and normalise them again; their lengths become those of the sum."""
        self._moved.copy_(batch.images).addcmul_(self._alpha.value / batch.lengths, self.value)
        growth = torch.linalg.vector_norm(self._moved, dim=-1, keepdim=True)  # (K, B, 1)
        batch.lengths.mul_(growth)
        batch.images.copy_(self._moved.div_(growth))

    def pull_back(self, batch: Batch) -> None:
        """Compute the gradient; the batch is not changed."""
        inverse_lengths = batch.lengths.reciprocal()  # (K, B, 1)
        by_class = (batch.errors.mT @ inverse_lengths).mul_(batch.scale)  # (K, C, 1)
        by_image = torch.sum(batch.errors * batch.logits, dim=-1, keepdim=True).mul_(inverse_lengths)  # (K, B, 1)
        torch.bmm(by_class.mT, batch.weights, out=self.gradient)  # (K, 1, D)
        self.gradient.sub_(by_image.mT @ self._moved).mul_(self._alpha.factor)
        self._alpha.pull_back(self.gradient, self.value)

    def restart(self) -> None:
        """Reset to a residual of zero."""
        self.value.zero_()


class TextProjection:
    """The projection (K, W, D) of the text tower, which gives classifiers `w = p @ projection`: `dL/dW = p' dL/dw`.

    Parameters
    ----------
    pre_projection : Tensor of shape (C, W)
        p, the input of the projection as a mean over templates; therefore w starts as the regular base.
    projection : Tensor of shape (W, D)
        The projection of the checkpoint.
    batch : Batch
        Buffers.
    """

    def __init__(self, pre_projection: Tensor, projection: Tensor, batch: Batch) -> None:
        fits, size, _ = batch.logits.shape
        self.value = projection.expand(fits, *projection.shape).clone()
        self.gradient = torch.empty_like(self.value)
        self._pre_projection, self._first = pre_projection, projection
        self._factor = self.value.new_full((fits, 1, 1), 1.0 / size)

    def apply(self, batch: Batch) -> None:
        """Compute the classifiers."""
        torch.matmul(self._pre_projection, self.value, out=batch.weights)  # (K, C, D)

    def pull_back(self, batch: Batch) -> None:
        """Overwrite the classifiers with their gradient, and compute the projection's from it."""
        batch.turn_weights_into_gradient(self._factor)
        torch.matmul(self._pre_projection.T, batch.weights, out=self.gradient)  # (K, W, D)

    def restart(self) -> None:
        """Reset to the projection of the checkpoint."""
        self.value.copy_(self._first)


def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write K matrix products to `out`; `right` is converted to the type of `left`, which may be narrower."""
    if left.dtype == right.dtype:
        torch.bmm(left, right, out=out)
    elif _sums_are_kept(left, out):
        torch.bmm(left, right.to(left.dtype), out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.bmm(left, right.to(left.dtype)))


def add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add K matrix products to `out`; `left` is converted to the type of `right`, which may be narrower."""
    if left.dtype == right.dtype:
        out.baddbmm_(left, right)
    elif _sums_are_kept(right, out):
        out.add_(torch.bmm(left.to(right.dtype), right, out_dtype=out.dtype))
    else:
        out.add_(torch.bmm(left.to(right.dtype), right))


def _sums_are_kept(narrow: Tensor, out: Tensor) -> bool:
    """Return True if torch can write products of narrow operands in the type of their sums, instead of rounding them.

    It can on CUDA, and from 16 bits to float32 only.
    """
    return narrow.is_cuda and out.dtype == torch.float32
