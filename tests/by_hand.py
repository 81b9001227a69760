"""A second implementation of the model and its training, in float64: NumPy, then autograd with torch.optim.Adam.

The tests compare the library with it. It follows the paper and shares no code with the library.

Axes: N images, V views, C classes, D embedding.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize


def normalised(features: np.ndarray) -> np.ndarray:
    """Return features (..., D) divided by their length, float64."""
    exact = np.asarray(features, np.float64)
    return exact / np.linalg.norm(exact, axis=-1, keepdims=True)


def logits(
    image_features: np.ndarray, weights: np.ndarray, logit_scale: float, image_shift: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return `logit_scale * cosine` (N, C) of un-normalised, shifted image features (N, D) and weights (C, D)."""
    shifted = np.asarray(image_features, np.float64) + image_shift
    return logit_scale * normalised(shifted) @ normalised(weights).T


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def probabilities(
    image_features: np.ndarray,
    weights: np.ndarray,
    logit_scale: float,
    image_shift: np.ndarray | float = 0.0,
    temperature: float = 1.0,
) -> np.ndarray:
    """Return calibrated probabilities (N, C)."""
    return softmax(logits(image_features, weights, logit_scale, image_shift) / temperature)


def accuracy(
    image_features: np.ndarray, weights: np.ndarray, labels: np.ndarray, image_shift: np.ndarray | float = 0.0
) -> float:
    """Return the accuracy in percent."""
    predicted = logits(image_features, weights, 1.0, image_shift).argmax(axis=1)
    return float(100 * (predicted == labels).mean())


def mean_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy of logits (N, C)."""
    return float(-np.log(softmax(logits)[np.arange(len(labels)), labels]).mean())


def loss(image_features: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor, logit_scale: float) -> torch.Tensor:
    """Return the mean cross-entropy of un-normalised features (N, D) and weights (C, D), for autograd."""
    cosines = normalize(image_features, dim=-1) @ normalize(weights, dim=-1).T
    return cross_entropy(logit_scale * cosines, labels)


def train(
    parameters: Sequence[torch.nn.Parameter],
    weights: Callable[[], torch.Tensor],
    views: np.ndarray,
    labels: np.ndarray,
    *,
    lr: float,
    weight_decay: float,
    epochs: int,
    batch: int,
    seed: int,
    logit_scale: float,
    stop: int | None = None,
) -> None:
    """Train parameters as research code does, with autograd and torch.optim.Adam.

    Parameters
    ----------
    parameters : sequence of Parameter
        What is trained, in place.
    weights : callable
        Returns the classifier (C, D) of the current parameters.
    views, labels : ndarray of shape (V, N, D) and (N,)
        Image features, of which epoch e uses view e mod V, and labels.
    lr, weight_decay, epochs, batch, seed, logit_scale : float or int
        The recipe.
    stop : int, optional
        Stop after this many epochs, on the schedule of `epochs`.
    """
    images, targets = torch.from_numpy(views), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    shuffler = torch.Generator().manual_seed(seed)
    full_batches = len(labels) // batch
    for epoch in range(stop or epochs):
        cosine = 0.5 * lr * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        optimiser.param_groups[0]["lr"] = 1e-5 if epoch == 0 else cosine
        order = torch.randperm(len(labels), generator=shuffler)
        batches = [order[number * batch : (number + 1) * batch] for number in range(full_batches)] or [order]
        for rows in batches:
            optimiser.zero_grad()
            loss(images[epoch % len(views)][rows], weights(), targets[rows], logit_scale).backward()
            optimiser.step()
