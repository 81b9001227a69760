"""A temperature fitted on validation images, so that probabilities are calibrated.

Axes: M validation images, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


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
