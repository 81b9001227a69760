"""Training of a cosine classifier that starts at the text, shared by ZS-LP and CLAP.

    logits = logit_scale <f / |f|, w_k / |w_k|>,  w_k = t_k at the start      # t: un-normalised mean text feature
    loss = cross-entropy + (1 / C) sum_k penalty_k |w_k - t_k|^2

The views of all images form one pool. An epoch shuffles the pool and takes max(1, floor(N / batch size)) batches from
it, so each image is seen about once per epoch, through a random view. SGD with momentum 0.9; learning rate 1e-5 in
epoch 0, then a cosine. The gradient is in closed form; with v = w / |w| and e = softmax(logits) - onehot:

    d cross-entropy / d w = logit_scale / B * (e' f - v sum_b e cosines) / |w|

Axes: R rows of the pool (V views of N images), B rows of a batch, C classes, D embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from taskres_cache.errors import FitError
from taskres_cache.heads.formulas import directions_and_lengths, normalise
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.method import Adapted
from taskres_cache.recipe import learning_rate

MOMENTUM = 0.9


@dataclass(frozen=True)
class PoolOptions:
    """Hyper-parameters of ZS-LP and CLAP.

    Parameters
    ----------
    lr : float, default 0.1
        Learning rate of SGD.
    epochs : int, default 300
        The last one counts.
    batch_size : int, default 256
        Rows of a batch, or the whole pool if it is smaller.
    """

    lr: float = 0.1
    epochs: int = 300
    batch_size: int = 256


@dataclass(frozen=True)
class Pool:
    """All views of the training images.

    Parameters
    ----------
    directions : Tensor of shape (R, D)
        Normalised image features.
    labels : Tensor of shape (R,), int64
        Positions of the classes.
    images : int
        N, which sets the number of batches per epoch.
    """

    directions: Tensor
    labels: Tensor
    images: int

    @classmethod
    def of(cls, task: FewShotTask) -> "Pool":
        """Build the pool of a task, on its device."""
        views = torch.from_numpy(task.augmented.image_features).to(task.device)
        labels = torch.from_numpy(task.train.labels).to(task.device)
        return cls(normalise(views).flatten(0, 1), labels.repeat(len(views)), len(labels))

    def epoch(self, batch_size: int, shuffler: torch.Generator) -> Tensor:
        """Return the rows (steps, B) of one epoch."""
        size, steps = min(batch_size, len(self.labels)), max(1, self.images // batch_size)
        order = torch.randperm(len(self.labels), generator=shuffler)[: steps * size]
        return order.view(steps, size).to(self.labels.device)


def train_from_text(task: FewShotTask, pool: Pool, options: PoolOptions, penalties: Tensor | None) -> Adapted:
    """Return the classifier after the last epoch, and the mean cross-entropy of each epoch.

    Parameters
    ----------
    task : FewShotTask
        The text and the seed.
    pool : Pool
        What to train on.
    options : PoolOptions
        The schedule.
    penalties : Tensor of shape (C,) or None
        Of the squared distance from the text; None for no penalty.

    Raises
    ------
    FitError
        The fit diverged.
    """
    text = torch.from_numpy(task.text.base).to(task.device)
    pull = None if penalties is None else (2 / len(text) * penalties)[:, None]
    weights, velocity = text.clone(), torch.zeros_like(text)
    shuffler = torch.Generator().manual_seed(task.seed)
    losses = []
    for number in range(options.epochs):
        rate = learning_rate(number, options.lr, options.epochs)
        loss = text.new_zeros(())
        order = pool.epoch(options.batch_size, shuffler)
        for rows in order:
            batch = pool.directions.index_select(0, rows), pool.labels[rows]
            step_loss, gradient = loss_and_gradient(*batch, weights, task.logit_scale)
            if pull is not None:
                gradient.addcmul_(weights - text, pull)
            velocity.mul_(MOMENTUM).add_(gradient)
            weights.sub_(velocity, alpha=rate)
            loss += step_loss
        losses.append(loss / len(order))
    if not weights.isfinite().all():
        raise FitError(f"the classifier diverged with learning rate {options.lr}; try a lower one")
    head = CosineHead(weights.cpu(), task.logit_scale)
    return Adapted(head, losses=tuple(torch.stack(losses).tolist()) if losses else ())


def loss_and_gradient(directions: Tensor, labels: Tensor, weights: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of a batch (B, D), (B,), and its gradient (C, D) with respect to the weights."""
    unit_weights, lengths = directions_and_lengths(weights)
    cosines = directions @ unit_weights.T  # (B, C)
    log_probabilities = (scale * cosines).log_softmax(dim=1)
    true = labels[:, None]
    loss = -log_probabilities.gather(1, true).mean()
    errors = log_probabilities.exp_().scatter_add_(1, true, cosines.new_full(true.shape, -1.0))
    along = (errors * cosines).sum(dim=0)[:, None]  # (C, 1)
    gradient = (errors.T @ directions).addcmul_(unit_weights, along, value=-1)
    return loss, gradient.mul_(scale / len(labels) / lengths[:, None])
