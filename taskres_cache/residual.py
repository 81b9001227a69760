"""The numerics of task residual tuning as pure functions of tensors: normalise, scale, multiply, compare.

Axes: N images, K classifiers, C classes, D embedding. Everything comes un-normalised. What training does to a batch, in
place and in closed form, is in `step`.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def normalise(features: Tensor) -> Tensor:
    """Return features (..., D) divided by their length."""
    lengths: Tensor = features.norm(dim=-1, keepdim=True)
    return features / lengths


def classifier(base: Tensor, residual: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the un-normalised weights `base + alpha * residual` (C, D); with a zero residual exactly the base."""
    return base + alpha * residual


def logits(image_features: Tensor, weights: Tensor, logit_scale: float) -> Tensor:
    """Return `logit_scale * cosine` (N, C) of un-normalised features (N, D) and weights (C, D)."""
    return logit_scale * normalise(image_features) @ normalise(weights).T  # (N, C)


def count_correct(image_features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return how many images (N, D) each of K classifiers (K, C, D) gets right, (K,); everything un-normalised.

    Scaling the logits changes no rank and is left out.
    """
    return torch.stack([(logits(image_features, rows, 1.0).argmax(dim=-1) == labels).sum() for rows in weights])


def mean_loss(image_features: Tensor, labels: Tensor, weights: Tensor, logit_scale: float) -> Tensor:
    """Return the mean cross-entropy (K,) of images (N, D) under each of K classifiers (K, C, D), all un-normalised."""
    return torch.stack([cross_entropy(logits(image_features, rows, logit_scale), labels) for rows in weights])
