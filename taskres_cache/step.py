"""One optimisation step of K residuals at once: two products, and everything else in place.

Nothing goes through autograd, no array of a product's size is allocated twice, and the host waits for nothing.

Axes: K fits, B images of a batch, C classes, D embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from taskres_cache.recipe import Recipe

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


class ResidualStep:
    """The residuals of K fits of one shape, their optimiser, and the buffers that a step works in.

    Parameters
    ----------
    directions : (rows, D) normalised image features, those of several training sets one below the other; their floating
        type is that of the products' operands.
    base : (C, D) un-normalised text classifier; its floating type is the one that everything is computed in.
    logit_scale : the multiplier s of the cosines.
    recipes : (K,) of one alpha rule; alpha, rate and decay are each fit's own.
    batch : B.

    Notes
    -----
    With `w = t + alpha * x`, `v = w/|w|`, cosines `<f, v>` and `e = softmax - onehot`, the mean cross-entropy has the
    gradient `dL/dw = s/B * (sum_b e f - v * sum_b e <f, v>) / |w|`, and `dL/dx = alpha * dL/dw`. This is the closed
    form with `<v, g>` taken on the side of the batch: the products run on `w` as it is, division by `|w|` is a scaling
    of columns of (B, C), and no (C, D) array is read for an inner product.
    """

    def __init__(
        self,
        directions: Tensor,
        base: Tensor,
        logit_scale: float,
        recipes: Sequence[Recipe],
        batch: int,
    ) -> None:
        fits, (classes, dim) = len(recipes), base.shape
        self.residual = base.new_zeros(fits, classes, dim)
        self.alpha = base.new_tensor([recipe.alpha for recipe in recipes])[:, None, None]  # (K, 1, 1)
        self._first_alpha = self.alpha.clone()
        self._directions, self._base, self._logit_scale = directions, base, logit_scale
        self._learns_alpha = recipes[0].alpha_rule == "learn"
        self._factor = (torch.ones_like(self.alpha) if self._learns_alpha else self.alpha) / batch  # (K, 1, 1)
        self._weights = base.new_empty(fits, classes, dim)  # and, once they have served, the gradient
        self._scale = base.new_empty(fits, classes, 1)  # s/|w|
        self._logits = base.new_empty(fits, batch, classes)
        self._errors = base.new_empty(fits, batch, classes)
        self._images = directions.new_empty(fits * batch, dim)
        self._minus_one = base.new_full((fits, batch, 1), -1.0)
        self._alpha_gradient = torch.zeros_like(self.alpha)
        self._optimisers = [self._optimiser(fit, recipe.weight_decay) for fit, recipe in enumerate(recipes)]

    def __call__(self, rows: Tensor, labels: Tensor, likelihoods: Tensor) -> None:
        """Take one step.

        Parameters
        ----------
        rows : (K, B) of the directions.
        labels : (K, B, 1) int64, those of the rows.
        likelihoods : (K, B, 1), written: the probability that each image's own class had.
        """
        torch.index_select(self._directions, 0, rows.reshape(-1), out=self._images)
        images = self._images.view(*rows.shape, -1)  # (K, B, D)
        self._forward(images)
        torch.gather(self._errors, -1, labels, out=likelihoods)
        self._errors.scatter_add_(-1, labels, self._minus_one)  # softmax - onehot
        self._backward(images)
        for optimiser in self._optimisers:
            optimiser.step()

    def _forward(self, images: Tensor) -> None:
        """Write the logits and, where the errors are to be, the softmax of images (K, B, D)."""
        torch.addcmul(self._base, self.alpha, self.residual, out=self._weights)  # (K, C, D)
        torch.linalg.vector_norm(self._weights, dim=-1, keepdim=True, out=self._scale)  # (K, C, 1)
        self._scale.reciprocal_().mul_(self._logit_scale)
        _multiply(images, self._weights.mT, self._logits)  # (K, B, C)
        self._logits.mul_(self._scale.mT)
        torch.softmax(self._logits, dim=-1, out=self._errors)  # (K, B, C)

    def _backward(self, images: Tensor) -> None:
        """Turn the weights into the gradient, given images (K, B, D) and the errors.

        With `r = s/|w|` and the errors times `alpha * r / B`, the sum `a` of errors times logits over the batch makes
        the radial part of the gradient `w * a * r / s^2`, which the weights are scaled to before the product is added.
        """
        self._errors.mul_((self._scale * self._factor).mT)
        radial = self._logits.mul_(self._errors).sum(dim=1)[..., None]  # (K, C, 1)
        self._weights.mul_(radial.mul_(self._scale).mul_(-1 / self._logit_scale**2))
        _add_product(self._weights, self._errors.mT, images)  # (K, C, D)
        if self._learns_alpha:
            torch.sum(self._weights * self.residual, dim=(1, 2), keepdim=True, out=self._alpha_gradient)
            self._weights.mul_(self.alpha)

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set each fit's learning rate."""
        for optimiser, rate in zip(self._optimisers, rates, strict=True):
            optimiser.set_rate(rate)

    def restart(self) -> None:
        """Go back to where the fits began: what a rehearsal did is forgotten."""
        self.residual.zero_()
        self.alpha.copy_(self._first_alpha)
        for optimiser in self._optimisers:
            optimiser.restart()

    def _optimiser(self, fit: int, weight_decay: float) -> "FusedAdam":
        parameters, gradients = [self.residual[fit]], [self._weights[fit]]
        if self._learns_alpha:
            parameters, gradients = [*parameters, self.alpha[fit]], [*gradients, self._alpha_gradient[fit]]
        return FusedAdam(parameters, gradients, weight_decay)


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


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write the K products into `out`; of operands of unlike types the narrower one's is used."""
    if left.dtype == right.dtype:
        torch.bmm(left, right, out=out)
    else:
        out.copy_(torch.bmm(left, right.to(left.dtype)))


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the K products to `out`, likewise."""
    if left.dtype == right.dtype:
        out.baddbmm_(left, right)
    else:
        out.add_(torch.bmm(left.to(right.dtype), right))
