"""CLIP-Adapter: a small network on image features, mixed with them.

    f' = ratio relu(relu(f down') up') + (1 - ratio) f
    loss = mean cross-entropy of logit_scale <f' / |f'|, t>          # t normalised

Source: Gao et al., "CLIP-Adapter: better vision-language models with feature adapters", IJCV 2024
(gaopengcuhk/CLIP-Adapter, clip_adapter.py, a trainer without its configuration, ratio 0.2). The optimiser is CoOp's:
SGD with momentum 0.9, decay 5e-4 and a cosine; 32 images per batch, learning rate 0.002 and 50, 100 or 200 epochs
for 1, 2 to 4, or more shots. Neither layer has a bias, so multiplying f by a number multiplies f' by it: raw features
(the authors) and normalised ones (LP++'s copy) train the same weights. With z = f' / |f'|, and P the probabilities of
a batch of B images, the gradient is in closed form:

    d loss / d f' = logit_scale / (B |f'|) * (G t - (G . cosines) z),  G = P - onehot

Deviations:
- 200 steps of 256 images with learning rate 0.1, for any number of shots. The sum of all learning rates is that of the
  authors for 1,600 images (16 shots of 100 classes). Theirs grows with the images: one shot hardly moves from
  zero-shot. Theirs would also be 50 times as many steps, and there is no warmup epoch here.
- The ratio is 0.2, as released. The paper searches one for each data set, LP++'s copy one on validation images; it is
  an option here. A greater ratio acts much like a greater learning rate.
- LP++'s copy does not normalise f'; ours does, as the authors.
- Epochs walk through the views of the cache, where theirs draw new crops.

Axes: V views, N training images, B images of a batch, C classes, D embedding, H hidden size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taskres_cache.errors import FitError
from taskres_cache.heads.formulas import directions_and_lengths, normalise
from taskres_cache.heads.kinds import AdapterHead
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.method import Adapted, Method

MOMENTUM = 0.9


@dataclass(frozen=True)
class ClipAdapterOptions:
    """Hyper-parameters of CLIP-Adapter.

    Parameters
    ----------
    ratio : float, default 0.2
        Part of the network's output in the sum with the image features.
    reduction : int, default 4
        Size of the embedding over that of the hidden layer.
    learning_rate, weight_decay : float
        Of SGD.
    steps, batch : int
        Steps of SGD, and images per step at most.
    """

    ratio: float = 0.2
    reduction: int = 4
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    steps: int = 200
    batch: int = 256


def fit(task: FewShotTask, options: ClipAdapterOptions) -> Adapted:
    """Train the network.

    Raises
    ------
    FitError
        Features are not finite, or the fit diverged.
    """
    views = normalise(torch.from_numpy(task.augmented.image_features).to(task.device))  # (V, N, D)
    labels = torch.from_numpy(task.train.labels).to(task.device)
    text = torch.from_numpy(task.text.ensemble).to(task.device)
    start = _initial(views.shape[2], options.reduction, task.seed)
    head = AdapterHead(start[0].to(views), start[1].to(views), text, task.logit_scale, options.ratio, "normalised")
    parameters = [torch.nn.Parameter(one) for one in (head.down, head.up)]  # share the head's memory
    rate, decay = options.learning_rate, options.weight_decay
    sgd = torch.optim.SGD(parameters, rate, MOMENTUM, weight_decay=decay, fused=True)
    losses = []
    for step, (view, rows) in enumerate(_batches(len(labels), options, task.seed)):
        loss, *gradients = _loss_and_gradients(head, views[view % len(views)][rows], labels[rows])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        sgd.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / options.steps)) / 2
        sgd.step()
        losses.append(loss.item())
    if not all(map(math.isfinite, losses)) or not all(one.isfinite().all() for one in (head.down, head.up)):
        raise FitError("clip-adapter diverged, or a feature is not finite; try a lower learning_rate")
    return Adapted(head.to(torch.device("cpu")), losses=tuple(losses))


def _initial(dim: int, reduction: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the weights (H, D) and (D, H) as torch's linear layers start: uniform within 1 / sqrt(inputs)."""
    rng, hidden = np.random.default_rng(seed), max(1, dim // reduction)
    down, up = rng.uniform(-1, 1, (hidden, dim)), rng.uniform(-1, 1, (dim, hidden))
    return torch.from_numpy(down / math.sqrt(dim)), torch.from_numpy(up / math.sqrt(hidden))


def _batches(images: int, options: ClipAdapterOptions, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the epoch and the rows of each step: the parts of an order that is drawn anew in each epoch."""
    rng, per_epoch = np.random.default_rng([seed, 1]), math.ceil(images / options.batch)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(options.steps):
        epoch, part = divmod(step, per_epoch)
        if part == 0:
            order = torch.from_numpy(rng.permutation(images))
        yield epoch, order[part * options.batch : (part + 1) * options.batch]


def _loss_and_gradients(head: AdapterHead, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of normalised images (B, D), and the gradients (H, D) and (D, H) of the two layers."""
    hidden = (images @ head.down.T).relu_()  # (B, H)
    output = (hidden @ head.up.T).relu_()  # (B, D)
    directions, lengths = directions_and_lengths(output.mul(head.ratio).add_(images, alpha=1 - head.ratio))
    cosines = directions @ head.text.T  # (B, C)
    logits = head.logit_scale * cosines
    wrong = logits.softmax(dim=1)
    wrong[torch.arange(len(labels), device=labels.device), labels] -= 1
    along = (wrong * cosines).sum(dim=1, keepdim=True)
    upstream = (wrong @ head.text).addcmul_(along, directions, value=-1)  # (B, D)
    upstream.mul_((head.logit_scale * head.ratio / len(labels) / lengths)[:, None]).mul_(output > 0)
    inner = (upstream @ head.up).mul_(hidden > 0)  # (B, H)
    return cross_entropy(logits, labels), inner.T @ images, upstream.T @ hidden


METHOD = Method(
    name="clip-adapter",
    fit=fit,
    options=ClipAdapterOptions(),
    trains="a small network on image features",
    chooses="fixed",
    paper="Gao et al., CLIP-Adapter: better vision-language models with feature adapters, IJCV 2024",
    views="narrow",
)
