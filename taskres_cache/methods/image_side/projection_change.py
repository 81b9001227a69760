"""Training of a change of the image projection, shared by ProLIP, RLA and P0.

    u = start + inputs change                             # image features in r coordinates
    logits = logit_scale * u text / sqrt(|u|^2 + rest)    # rest: squared length outside these coordinates
    loss = cross-entropy + penalty |change|^2             # sum of squares

The start of u is the cached image feature, so the projection itself is never multiplied, and the regulariser is that of
a change from zero: a weight decay of 2 * penalty in Adam. The gradient is in closed form; with P = softmax(logits),
z = u / sqrt(|u|^2 + rest) and one row per image:

    d loss / d u = logit_scale / (N sqrt(|u|^2 + rest)) * (G text' - (G . cosines) z),  G = P - onehot

A step costs two matrix products of N W r multiplications. That is the least for Adam: it scales each element of the
change by itself, so neither a basis of the images nor one of the text makes the matrix smaller. What does is fewer
images per step: with more than `images_per_step`, each step takes the next ones of a shuffled order.

Axes: V views, N images, W size of the inputs, r coordinates, C classes, B members that differ in
learning rate and penalty.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskres_cache.errors import FitError

EPS = 1e-4  # of Adam


@dataclass(frozen=True)
class Problem:
    """What a change of the projection is trained on.

    Parameters
    ----------
    inputs : Tensor of shape (V, N, W)
        What the change is multiplied with.
    start : Tensor of shape (V, N, r)
        Coordinates of the image features before the change.
    rest : Tensor of shape (V, N)
        Squared length of the image features outside the coordinates.
    text : Tensor of shape (r, C)
        Coordinates of the normalised text features.
    labels : Tensor of shape (N,), int64
        Positions of the classes.
    logit_scale : float
        Multiplier of the cosines.
    """

    inputs: Tensor
    start: Tensor
    rest: Tensor
    text: Tensor
    labels: Tensor
    logit_scale: float


@dataclass(frozen=True)
class Schedule:
    """How long a change is trained.

    Parameters
    ----------
    steps : int
        Steps of Adam, with a cosine from the learning rate to 0.
    images_per_step : int
        At most that many images per step.
    seed : int
        Of the order of the images, if there are more.
    """

    steps: int
    images_per_step: int
    seed: int


@dataclass(frozen=True)
class Change:
    """The trained change of one member.

    Parameters
    ----------
    matrix : Tensor of shape (W, r)
        Added to the projection.
    losses : tuple of float
        Mean cross-entropy of each step, without the penalty.
    """

    matrix: Tensor
    losses: tuple[float, ...]

    @property
    def diverged(self) -> bool:
        """True if a loss or an element is not finite."""
        return not (all(map(math.isfinite, self.losses)) and bool(self.matrix.isfinite().all()))


def train_changes(
    problem: Problem, rates: Sequence[float], penalties: Sequence[float], schedule: Schedule
) -> list[Change]:
    """Train one change per learning rate and penalty; step i sees view (i + 1) mod V.

    Adam with eps 1e-4 and a cosine from the learning rate to 0. The members train side by side.
    """
    shape = len(rates), problem.inputs.shape[2], problem.start.shape[2]
    changes, gradients = problem.inputs.new_zeros(shape), problem.inputs.new_zeros(shape)  # (B, W, r)
    settings = zip(changes, gradients, rates, penalties, strict=True)
    groups = [
        {"params": [_parameter(change, gradient)], "lr": rate, "weight_decay": 2 * penalty}
        for change, gradient, rate, penalty in settings
    ]
    adam = torch.optim.Adam(groups, eps=EPS, fused=True)
    losses = []
    for step, part in enumerate(_batches(problem, schedule)):
        loss, upstream = _loss_and_gradient(part, changes)
        losses.append(loss)
        torch.matmul(part.inputs.T, upstream, out=gradients)
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / schedule.steps)) / 2
        adam.step()
    by_member = torch.stack(losses, dim=1).tolist()
    return [Change(matrix, tuple(values)) for matrix, values in zip(changes, by_member, strict=True)]


def train_change(problem: Problem, rate: float, penalty: float, schedule: Schedule) -> Change:
    """Train a single change.

    Raises
    ------
    FitError
        The fit diverged.
    """
    (change,) = train_changes(problem, [rate], [penalty], schedule)
    if change.diverged:
        raise FitError(f"the projection diverged with learning rate {rate}; try a lower one")
    return change


def _parameter(change: Tensor, gradient: Tensor) -> torch.nn.Parameter:
    """Return a parameter that shares the memory of a change and of its gradient."""
    parameter = torch.nn.Parameter(change)
    parameter.grad = gradient
    return parameter


def _batches(problem: Problem, schedule: Schedule) -> Iterator[Problem]:
    """Yield the images of each step: all of one view, or the next ones of an endless shuffled order."""
    count, size = len(problem.labels), schedule.images_per_step
    rng = np.random.default_rng(schedule.seed)
    passes = math.ceil(schedule.steps * size / count) if count > size else 0
    order = torch.from_numpy(np.concatenate([rng.permutation(count) for _ in range(passes)] or [np.arange(count)]))
    order = order.to(problem.labels.device)
    for step in range(schedule.steps):
        view = (step + 1) % len(problem.inputs)
        whole = problem.inputs[view], problem.start[view], problem.rest[view], problem.labels
        rows = order[step * size : (step + 1) * size]
        inputs, start, rest, labels = (part[rows] for part in whole) if passes else whole
        yield Problem(inputs, start, rest, problem.text, labels, problem.logit_scale)


def cosines(part: Problem, changes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return cosines (B, N, C), directions (B, N, r) and lengths (B, N, 1) of one view, for changes (B, W, r)."""
    moved = torch.matmul(part.inputs, changes).add_(part.start)  # (B, N, r)
    lengths = (moved.square().sum(dim=2) + part.rest).sqrt_()[..., None]
    directions = moved.div_(lengths)
    return directions @ part.text, directions, lengths


def _loss_and_gradient(part: Problem, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy (B,) of one view, and its gradient (B, N, r) with respect to the coordinates."""
    images = torch.arange(len(part.labels), device=part.labels.device)
    of_classes, directions, lengths = cosines(part, changes)
    log_probabilities = (part.logit_scale * of_classes).log_softmax(dim=2)
    loss = -log_probabilities[:, images, part.labels].mean(dim=1)
    wrong = log_probabilities.exp_()
    wrong[:, images, part.labels] -= 1
    along = (wrong * of_classes).sum(dim=2, keepdim=True)
    upstream = (wrong @ part.text.T).addcmul_(along, directions, value=-1)
    return loss, upstream.mul_(part.logit_scale / len(images) / lengths)
