"""A temperature fitted on validation images, so that probabilities are calibrated.

Axes: M validation images, C classes.
"""

from math import exp

import torch
from torch import Tensor

MOST_STEPS = 100
LONGEST_STEP = 1.0  # in ln T: far from the minimum Newton's steps are too long
TOLERANCE = 1e-10


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that calibrates `softmax(logits / T)`; 1 without images.

    Parameters
    ----------
    logits : Tensor of shape (M, C)
        Logits of the validation images.
    labels : Tensor of shape (M,), int64
        Their labels.

    Notes
    -----
    Source: temperature scaling, Guo et al., ICML 2017: T minimises the summed cross-entropy of `logits / T`. If every
    validation image is classified correctly, which is common in small splits, plain temperature scaling has no optimum
    above 0. Therefore `ln(T)^2 / 2` is added, the prior that ln T is normal around 0; hundreds of images outweigh it.
    Newton's method; torch.optim would import a second's worth of modules for one number.
    """
    if len(labels) == 0:
        return 1.0
    placed = logits.detach() if logits.is_cuda else logits.detach().cpu()  # MPS has no float64
    scores = placed.double()
    relative = scores - scores.gather(1, labels.to(scores.device)[:, None])  # (M, C) the true class has 0
    log_temperature = 0.0
    for _ in range(MOST_STEPS):
        slope, curvature = _derivatives(relative, log_temperature)
        step = -slope / curvature if curvature > 0 else -slope  # the loss is convex near its minimum
        log_temperature += min(max(step, -LONGEST_STEP), LONGEST_STEP)
        if abs(step) < TOLERANCE:
            break
    return exp(log_temperature)


def _derivatives(relative: Tensor, log_temperature: float) -> tuple[float, float]:
    """Return the first and second derivative of the penalised loss by ln T.

    With p the probabilities and m, v mean and variance of the relative logits / T under p, these are
    `ln T - sum m` and `1 + sum (m + v)`.
    """
    scaled = relative * exp(-log_temperature)
    probabilities = scaled.softmax(dim=1)
    mean = (probabilities * scaled).sum(dim=1)
    spread = (probabilities * scaled.square()).sum(dim=1) - mean.square()
    sums = torch.stack([mean.sum(), spread.sum()]).tolist()
    return log_temperature - sums[0], 1.0 + sums[0] + sums[1]
