"""A temperature fitted on validation images, so that probabilities are calibrated.

Axes: M images, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


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
