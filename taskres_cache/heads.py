"""The model on one page: from image features and a classifier to logits and probabilities.

    f = image_features + alpha * image_residual          # image side, usually left alone
    w = base + alpha * residual                          # text side: the task residual
    logits = logit_scale * <f / |f|, w / |w|>
    probabilities = softmax(logits / temperature)

All features enter un-normalised, as the encoders return them. All code that needs logits uses this module, except the
training step, which computes the same in place and its gradient in closed form: `methods/task_residual/step.py`.

Axes: N images, C classes, D embedding.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def normalise(features: Tensor) -> Tensor:
    """Return features (..., D) divided by their length."""
    return directions_and_lengths(features)[0]


def directions_and_lengths(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (..., D) divided by their length, and the lengths (...,)."""
    lengths: Tensor = features.norm(dim=-1)
    return features / lengths[..., None], lengths


def add_residual(base: Tensor, residual: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the un-normalised weights `base + alpha * residual` (C, D); a zero residual gives exactly the base."""
    return base + alpha * residual


def scaled_cosines(image_features: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Return `scale * cosine` (N, C) of un-normalised features (N, D) and weights (C, D)."""
    return scale * normalise(image_features) @ normalise(weights).T  # (N, C)


@dataclass(frozen=True)
class Head:
    """A cosine classifier, ready to use.

    Parameters
    ----------
    weights : Tensor of shape (C, D)
        Un-normalised, one row per class.
    logit_scale : float
        Multiplier of the cosines, `exp(logit_scale)` of the checkpoint; 100 for OpenAI's.
    image_shift : Tensor of shape (D,) or (1, D), optional
        Added to un-normalised image features; None leaves them unchanged.
    temperature : float, default 1
        Divides the logits to calibrate probabilities. It never changes the ranking of classes.

    Examples
    --------
    >>> import torch
    >>> from taskres_cache.heads import Head
    >>> head = Head(torch.tensor([[2.0, 0.0], [0.0, 0.5]]), logit_scale=100.0)
    >>> head.logits(torch.tensor([[3.0, 4.0]])).round().tolist()
    [[60.0, 80.0]]
    """

    weights: Tensor
    logit_scale: float
    image_shift: Tensor | None = None
    temperature: float = 1.0

    @classmethod
    def of_arrays(
        cls,
        base: np.ndarray,
        logit_scale: float,
        residual: np.ndarray | None = None,
        image_residual: np.ndarray | None = None,
        alpha: float = 1.0,
        temperature: float = 1.0,
    ) -> "Head":
        """Build the head of a base and its residuals.

        Parameters
        ----------
        base : ndarray of shape (C, D)
            Un-normalised; the head shares its memory if there is no residual.
        logit_scale : float
            Multiplier of the cosines.
        residual : ndarray of shape (C, D), optional
            Residual of the base.
        image_residual : ndarray of shape (D,), optional
            Residual of the image features.
        alpha : float, default 1
            Weight of both residuals.
        temperature : float, default 1
            Divides the logits.
        """
        text = torch.from_numpy(base)
        weights = text if residual is None else add_residual(text, torch.from_numpy(residual), alpha)
        shift = None if image_residual is None else alpha * torch.from_numpy(image_residual)
        return cls(weights, logit_scale, shift, temperature)

    def to(self, target: torch.device | torch.dtype) -> "Head":
        """Return the head on a device, or in a floating type."""
        shift = None if self.image_shift is None else self.image_shift.to(target)
        return replace(self, weights=self.weights.to(target), image_shift=shift)

    def of_classes(self, rows: np.ndarray) -> "Head":
        """Return the head of some of the classes, given by their rows, in that order."""
        return replace(self, weights=self.weights[torch.from_numpy(rows).to(self.weights.device)])

    def shifted(self, image_features: Tensor) -> Tensor:
        """Return un-normalised image features (N, D) with the image shift added."""
        return image_features if self.image_shift is None else image_features + self.image_shift

    def cosines(self, image_features: Tensor) -> Tensor:
        """Return the cosine (N, C) of un-normalised image features (N, D) with each class."""
        return scaled_cosines(self.shifted(image_features), self.weights, 1.0)

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits (N, C) of un-normalised image features (N, D), without the temperature."""
        return scaled_cosines(self.shifted(image_features), self.weights, self.logit_scale)

    def probabilities(self, image_features: Tensor) -> Tensor:
        """Return calibrated probabilities (N, C) of un-normalised image features (N, D)."""
        scale = self.logit_scale / self.temperature
        return scaled_cosines(self.shifted(image_features), self.weights, scale).softmax(dim=-1)

    def score(self, image_features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return accuracy in percent and the negative mean cross-entropy on labelled images (N, D), (N,).

        Fits and epochs are ranked by this pair on validation images: accuracy first, then the lower loss.
        """
        correct = (self.cosines(image_features).argmax(dim=-1) == labels).sum().item()
        return 100.0 * correct / len(labels), -cross_entropy(self.logits(image_features), labels).item()
