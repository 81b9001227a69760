"""A second implementation of methods that tune the image projection: autograd, torch.optim and plain loops.

Axes: V views, N images, W size of the inputs, C classes, D embedding.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from taskres_cache.methods.few_shot import FewShotTask


def tuned(
    task: FewShotTask,
    parameter: Tensor,
    features_of: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    lr: float,
    penalty: float,
    steps: int,
) -> tuple[Tensor, list[float]]:
    """Return the tuned parameter and the cross-entropy of each step; inputs (V, N, W), all images at every step."""
    start = parameter.clone()
    trained = torch.nn.Parameter(parameter.clone())
    optimiser = torch.optim.Adam([trained], lr=lr, eps=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    labels, text = torch.from_numpy(task.train.labels), torch.from_numpy(task.text.ensemble)
    losses = []
    for step in range(steps):
        view = inputs[(step + 1) % len(inputs)]
        logits = task.logit_scale * normalize(features_of(view, trained)) @ text.T
        loss = cross_entropy(logits, labels)
        optimiser.zero_grad()
        (loss + penalty * torch.nn.functional.mse_loss(trained, start, reduction="sum")).backward()
        optimiser.step()
        cosine.step()
        losses.append(loss.item())
    return trained.detach(), losses
