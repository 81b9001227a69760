"""Stage two: the training loop over cached tensors. Knows no HDF5, no encoder, and is never handed a test feature.

Axes: N training images, C classes, T templates, D embedding.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from taskres_cache.errors import FitError
from taskres_cache.recipe import Recipe, learning_rate
from taskres_cache.residual import Adam, normalise, residual_gradient


@dataclass(frozen=True)
class TrainingSet:
    """The features a fit may see: (N, D) un-normalised, of any floating type, and labels (N,)."""

    image_features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Fit:
    """A trained residual (C, D), the mean loss of each epoch, and the seconds it took."""

    residual: np.ndarray
    losses: tuple[float, ...]
    seconds: float


def regular_base(embeddings: np.ndarray) -> np.ndarray:
    """Return the regular base (C, D): the mean over templates of un-normalised embeddings (C, T, D).

    Nothing is normalised before the mean (TaskRes, section 3.2, and its released code), unlike in a prompt ensemble.
    """
    base: np.ndarray = embeddings.mean(axis=1)  # (C, D)
    return base


def fit_residual(
    training: TrainingSet,
    base: np.ndarray,
    logit_scale: float,
    recipe: Recipe,
    epochs: int,
    seed: int,
    device: torch.device,
) -> Fit:
    """Train the residual by the recipe and return the last epoch's.

    Parameters
    ----------
    training : few-shot features and labels.
    base : (C, D) un-normalised text classifier; its floating type is the one that everything is computed in.
    logit_scale : the multiplier s of the cosines.
    recipe : all but the number of epochs, which may depend on the shots.
    epochs : passes over the training set.
    seed : of the batches' order; the same on every device.
    device : to compute on.

    Raises
    ------
    FitError : a loss or the residual became NaN or infinite.

    Notes
    -----
    Source: TaskRes, section 4.1, and its released code: reshuffled each epoch; the last, short batch is dropped only
    when there is at least one full one.
    """
    started = perf_counter()
    fixed_base = torch.from_numpy(base).to(device)  # (C, D)
    directions = normalise(torch.from_numpy(training.image_features).to(fixed_base))  # (N, D)
    labels = torch.from_numpy(training.labels).to(device, torch.int64)  # (N,)
    residual = torch.zeros_like(fixed_base)
    optimiser = Adam(residual, recipe.weight_decay)
    shuffler = torch.Generator().manual_seed(seed)
    losses = []
    for epoch in range(epochs):
        lr = learning_rate(epoch, recipe.lr, epochs)
        batch_losses = []
        for rows in epoch_batches(len(labels), recipe.batch_size, shuffler):
            chosen = rows.to(device)
            outcome = residual_gradient(
                directions[chosen], labels[chosen], fixed_base, residual, recipe.alpha, logit_scale
            )
            optimiser.step(outcome.gradient, lr)
            batch_losses.append(outcome.loss)
        losses.append(torch.stack(batch_losses).mean())
    _refuse_divergence(torch.stack(losses), residual, recipe)
    return Fit(residual.cpu().numpy(), tuple(torch.stack(losses).tolist()), perf_counter() - started)


def _refuse_divergence(losses: Tensor, residual: Tensor, recipe: Recipe) -> None:
    finite = losses.isfinite()
    if not (finite.all() and residual.isfinite().all()):
        epoch = int(finite.int().argmin()) if not finite.all() else len(losses) - 1
        raise FitError(f"the fit diverged in epoch {epoch} with lr {recipe.lr} and alpha {recipe.alpha}; lower them")


def epoch_batches(count: int, batch_size: int, shuffler: torch.Generator) -> list[Tensor]:
    """Return the shuffled rows of one epoch in batches; a short last one only when there is no full one."""
    batches = list(torch.randperm(count, generator=shuffler).split(batch_size))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches
