"""The numerics of task residual tuning: pure functions of tensors, gradient in closed form, no autograd.

Axes: N images, B images of a batch, C classes, D embedding. All features come un-normalised; this module is the one
place where they are normalised, scaled and multiplied.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
ROWS_AT_ONCE = 8192  # bounds the logits of an evaluation to 33 MB at a thousand classes


def normalise(features: Tensor) -> Tensor:
    """Return features (..., D) divided by their length."""
    lengths: Tensor = features.norm(dim=-1, keepdim=True)
    return features / lengths


def classifier(base: Tensor, residual: Tensor, alpha: float) -> Tensor:
    """Return the un-normalised weights `base + alpha * residual` (C, D); with a zero residual exactly the base."""
    return base + alpha * residual


def logits(image_features: Tensor, weights: Tensor, logit_scale: float) -> Tensor:
    """Return `logit_scale * cosine` (N, C) of un-normalised features (N, D) and weights (C, D)."""
    return logit_scale * normalise(image_features) @ normalise(weights).T  # (N, C)


@dataclass(frozen=True)
class LossAndGradient:
    """Mean cross-entropy of a batch (a scalar tensor) and its gradient with respect to the residual (C, D)."""

    loss: Tensor
    gradient: Tensor


def residual_gradient(
    directions: Tensor, labels: Tensor, base: Tensor, residual: Tensor, alpha: float, logit_scale: float
) -> LossAndGradient:
    """Return the loss of a batch and its gradient for the residual, in closed form.

    Parameters
    ----------
    directions : (B, D) image features, normalised already (they never change, so that is done once a fit).
    labels : (B,) int64.
    base, residual : (C, D), un-normalised.
    alpha, logit_scale : multipliers of the residual and of the cosines.

    Notes
    -----
    With `v = w/|w|` and `g = s/B * (softmax - onehot)^T f` the gradient is `alpha * (g - v <v, g>) / |w|`: what the
    normalisation lets through of `g` is its part at right angles to `v`.
    """
    weights = classifier(base, residual, alpha)  # (C, D)
    lengths = weights.norm(dim=-1, keepdim=True)  # (C, 1)
    units = weights / lengths  # (C, D)
    log_probabilities = (logit_scale * directions @ units.T).log_softmax(dim=-1)  # (B, C)
    loss = -log_probabilities.gather(1, labels[:, None]).mean()
    errors = log_probabilities.exp()  # (B, C)
    errors[torch.arange(len(labels), device=labels.device), labels] -= 1.0
    pull = (logit_scale / len(labels)) * errors.T @ directions  # (C, D)
    across = pull - units * (units * pull).sum(dim=-1, keepdim=True)
    return LossAndGradient(loss, alpha * across / lengths)


class Adam:
    """Adam with L2 decay added to the gradient, as `torch.optim.Adam(weight_decay=...)`; not AdamW.

    Parameters
    ----------
    parameter : (C, D), updated in place by `step`.
    weight_decay : times the parameter, added to its gradient.
    """

    def __init__(self, parameter: Tensor, weight_decay: float) -> None:
        self.parameter, self.weight_decay = parameter, weight_decay
        self.mean, self.square = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self.steps = 0

    def step(self, gradient: Tensor, lr: float) -> None:
        """Move the parameter against its gradient at rate `lr`."""
        beta1, beta2 = ADAM_BETAS
        self.steps += 1
        gradient = gradient + self.weight_decay * self.parameter
        self.mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = self.square.sqrt().div_((1 - beta2**self.steps) ** 0.5).add_(ADAM_EPS)
        self.parameter.addcdiv_(self.mean, denominator, value=-lr / (1 - beta1**self.steps))


def accuracy(image_features: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Return the percentage of images (N, D), un-normalised, whose nearest weight row is their label's.

    Scaling the logits changes no rank and is left out.
    """
    parts = zip(image_features.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True)
    right = sum(int((logits(part, weights, 1.0).argmax(dim=-1) == wanted).sum()) for part, wanted in parts)
    return 100.0 * right / len(labels)
