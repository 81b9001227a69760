"""How far a classifier's confidence can be believed: a temperature fitted on val, and the calibration error.

Axes: M images, C classes, B bins.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T by which logits are divided to be believed; 1 where there is no image to fit it on.

    Parameters
    ----------
    logits : (M, C) of val images.
    labels : (M,) int64.

    Notes
    -----
    Source: temperature scaling, Guo et al., ICML 2017: T minimises the summed cross-entropy of `logits / T`. The few
    images of a val split are often all classified right, and then only T = 0 would minimise it; so `ln(T)^2 / 2` is
    added, the prior that ln T is normal around 0, which hundreds of images outweigh.
    """
    if len(labels) == 0:
        return 1.0
    exact = logits.detach().double().cpu()
    targets = labels.cpu()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def penalised_loss() -> Tensor:
        optimiser.zero_grad()
        loss = cross_entropy(exact / log_temperature.exp(), targets, reduction="sum") + log_temperature.square() / 2
        loss.backward()
        return loss

    optimiser.step(penalised_loss)
    return log_temperature.detach().exp().item()


@dataclass(frozen=True)
class Reliability:
    """Images by how sure the classifier was of them, in B bins of equal width from 0 to 1.

    Parameters
    ----------
    counts : (B,) images.
    confidences, accuracies : (B,) mean confidence and share that is right, from 0 to 1; 0 in an empty bin.
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error in percent: how far apart confidence and accuracy are, over all images."""
        gaps = np.abs(self.confidences - self.accuracies)
        return float(100.0 * (self.counts * gaps).sum() / max(self.counts.sum(), 1))


def reliability(confidences: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Return confidences (M,) from 0 to 1, and whether each image was right (M,), in bins.

    A bin holds what lies above its lower edge, up to and with its upper one.
    """
    places = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)  # (M,)
    counts = np.bincount(places, minlength=bins)
    filled = np.maximum(counts, 1)
    sums = (np.bincount(places, weights=values, minlength=bins) for values in (confidences, right.astype(np.float64)))
    mean_confidences, accuracies = (total / filled for total in sums)
    return Reliability(counts, mean_confidences, accuracies)
