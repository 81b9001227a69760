"""A second implementation of ZS-LP and CLAP: autograd, torch.optim.SGD and plain loops.

Axes: N images, C classes, D embedding.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from taskres_cache.methods.few_shot import FewShotTask


def trained(
    task: FewShotTask, lr: float, epochs: int, batch_size: int, penalties: list[float]
) -> tuple[Tensor, list[float]]:
    """Return the weights (C, D) after the last epoch, and the mean cross-entropy of each epoch."""
    views = [torch.from_numpy(view) for view in task.augmented.image_features]
    pool = torch.cat(views)
    labels = torch.cat([torch.from_numpy(task.train.labels) for _ in views])
    text = torch.from_numpy(task.text.base)
    weights = torch.nn.Parameter(text.clone())
    optimiser = torch.optim.SGD([weights], lr=1e-5, momentum=0.9)
    shuffler = torch.Generator().manual_seed(task.seed)
    losses = []
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = 1e-5 if epoch == 0 else lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        order = torch.randperm(len(pool), generator=shuffler)
        steps = max(1, len(task.train) // batch_size)
        total = 0.0
        for step in range(steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            logits = task.logit_scale * normalize(pool[batch]) @ normalize(weights).T
            loss = cross_entropy(logits, labels[batch])
            distance = sum(
                penalty * (weight - start).square().sum()
                for penalty, weight, start in zip(penalties, weights, text, strict=True)
            )
            optimiser.zero_grad()
            (loss + distance / len(text)).backward()
            optimiser.step()
            total += loss.item()
        losses.append(total / steps)
    return weights.detach(), losses
