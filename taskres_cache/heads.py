"""The numerics of task residual tuning as pure functions of tensors: normalise, scale, multiply, compare.

Axes: N images, C classes, D embedding. Everything comes un-normalised. What training does to a batch, in place and in
closed form, is in `step` and `tuned`.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy


def normalise(features: Tensor) -> Tensor:
    """Return features (..., D) divided by their length."""
    return directions_and_lengths(features)[0]


def directions_and_lengths(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (..., D) divided by their length, and the lengths (...,)."""
    lengths: Tensor = features.norm(dim=-1)
    return features / lengths[..., None], lengths


def classifier(base: Tensor, residual: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the un-normalised weights `base + alpha * residual` (C, D); with a zero residual exactly the base."""
    return base + alpha * residual


def moved(image_features: Tensor, shift: Tensor | None) -> Tensor:
    """Return un-normalised features (N, D) with `alpha * image_residual` (D,) or (1, D) added, where there is one."""
    return image_features if shift is None else image_features + shift


def logits(image_features: Tensor, weights: Tensor, logit_scale: float) -> Tensor:
    """Return `logit_scale * cosine` (N, C) of un-normalised features (N, D) and weights (C, D)."""
    return logit_scale * normalise(image_features) @ normalise(weights).T  # (N, C)


def probabilities(
    image_features: Tensor, weights: Tensor, shift: Tensor | None, logit_scale: float, temperature: float
) -> Tensor:
    """Return the probability (N, C) of each class for un-normalised features (N, D), as a head gives it.

    Parameters
    ----------
    image_features : (N, D) un-normalised.
    weights, shift : of the head, (C, D) and (D,) or None.
    logit_scale, temperature : the multiplier s of the cosines, and what it is divided by.
    """
    return logits(moved(image_features, shift), weights, logit_scale / temperature).softmax(dim=-1)  # (N, C)


def count_correct(image_features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return how many images (N, D) a classifier (C, D) gets right; a scale of the logits would change no rank."""
    return (logits(image_features, weights, 1.0).argmax(dim=-1) == labels).sum()


def mean_loss(image_features: Tensor, labels: Tensor, weights: Tensor, logit_scale: float) -> Tensor:
    """Return the mean cross-entropy of images (N, D) under a classifier (C, D)."""
    return cross_entropy(logits(image_features, weights, logit_scale), labels)


def score(
    image_features: Tensor, labels: Tensor, head: tuple[Tensor, Tensor | None], logit_scale: float
) -> tuple[float, float]:
    """Return by what fits and epochs are compared on val images: accuracy in percent, then minus the loss.

    Parameters
    ----------
    image_features, labels : (M, D) un-normalised, and (M,).
    head : un-normalised classifier (C, D), and what it adds to image features, if anything.
    logit_scale : the multiplier s of the cosines.
    """
    weights, shift = head
    features = moved(image_features, shift)
    correct = count_correct(features, labels, weights).item()
    return 100.0 * correct / len(labels), -mean_loss(features, labels, weights, logit_scale).item()
