"""Stage two: the training loop over cached tensors. Knows no HDF5, no encoder, and is never handed a test feature.

Fits of one shape are stacked and take their steps together where that is faster; a stacked fit is the fit alone.

Axes: K fits of a stack, N training images, V views of each, B images of a batch, C classes, T templates, D embedding.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from taskres_cache.epoch import Epoch
from taskres_cache.errors import FitError, OptionError
from taskres_cache.recipe import Recipe, learning_rate
from taskres_cache.residual import normalise
from taskres_cache.step import ResidualStep
from taskres_cache.stopping import BestEpoch, LastEpoch

STACKED_ON_CPU = 1 << 16  # elements of all residuals together; from there on a stack gains nothing (measured)
STACKED_ON_GPU = 1 << 28  # elements: six arrays of this size, 6 GiB, and launches no longer count
MATMUL_PRECISION = {"fp32": "highest", "tf32": "high", "bf16": "highest"}


@dataclass(frozen=True)
class TrainingSet:
    """The features a fit may see: directions (V, N, D), normalised once and for all, and labels (N,).

    Epoch e takes view e mod V: the paper's re-augmentation, which draws anew in each epoch, with V draws to go round.
    """

    directions: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, image_features: np.ndarray, labels: np.ndarray) -> "TrainingSet":
        """Return un-normalised features (N, D), which stay as they are, and labels as a training set of one view."""
        return cls(normalise(torch.from_numpy(image_features)).numpy()[None], labels)

    @classmethod
    def read(cls, pieces: Iterable[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, dim: int) -> "TrainingSet":
        """Return a training set of one view from pieces, positions and un-normalised features (.., D), none kept."""
        directions = np.empty((1, len(labels), dim), np.float32)
        for positions, features in pieces:
            directions[0, positions] = normalise(torch.from_numpy(features)).numpy()
        return cls(directions, labels)

    @classmethod
    def read_views(
        cls, pieces: Iterable[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, dim: int, views: int
    ) -> "TrainingSet":
        """Return a training set of so many views from pieces, positions and un-normalised features (.., V, D)."""
        directions = np.empty((views, len(labels), dim), np.float32)
        for positions, features in pieces:
            taken = normalise(torch.from_numpy(features[:, :views])).numpy()
            directions[:, positions] = taken.swapaxes(0, 1)
        return cls(directions, labels)


@dataclass(frozen=True)
class ValidationSet:
    """The features that may choose between fits or epochs: (M, D) un-normalised, and labels (M,)."""

    image_features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class FitTask:
    """One fit to be done.

    Parameters
    ----------
    training : few-shot features and labels.
    recipe : how to train; its alpha is the one to use, or to start from.
    epochs : passes over the training set, which may depend on the shots.
    seed : of the batches' order; the same on every device.
    validation : wanted by recipes that choose something; nothing else may choose.
    """

    training: TrainingSet
    recipe: Recipe
    epochs: int
    seed: int
    validation: ValidationSet | None = None


@dataclass(frozen=True)
class Fit:
    """A trained residual (C, D), its alpha, the mean loss of each epoch, the epochs that it keeps, and its seconds."""

    residual: np.ndarray
    alpha: float
    losses: tuple[float, ...]
    kept_epochs: int
    seconds: float


def regular_base(embeddings: np.ndarray) -> np.ndarray:
    """Return the regular base (C, D): the mean over templates of un-normalised embeddings (C, T, D).

    Nothing is normalised before the mean (TaskRes, section 3.2, and its released code), unlike in a prompt ensemble.
    """
    base: np.ndarray = embeddings.mean(axis=1)  # (C, D)
    return base


def fit_residuals(tasks: Sequence[FitTask], base: np.ndarray, logit_scale: float, device: torch.device) -> list[Fit]:
    """Train every task's residual, stacked where that is faster.

    Parameters
    ----------
    tasks : what to fit; those of one shape may be stacked.
    base : (C, D) un-normalised text classifier; its floating type is the one that everything is computed in.
    logit_scale : the multiplier s of the cosines.
    device : to compute on.

    Raises
    ------
    FitError : a loss or a residual became NaN or infinite.
    OptionError : a precision that the device does not have, or a patience without validation images.

    Notes
    -----
    Source: TaskRes, section 4.1, and its released code: reshuffled each epoch; the last, short batch is dropped only
    when there is at least one full one.
    """
    fixed_base = torch.from_numpy(base).to(device)  # (C, D)
    fits: dict[int, Fit] = {}
    for numbers in stacks(tasks, base.size, device):
        stack = [tasks[number] for number in numbers]
        with _products_in(stack[0].recipe.precision, device):
            fits |= zip(numbers, _fit_stack(stack, fixed_base, logit_scale), strict=True)
    return [fits[number] for number in range(len(tasks))]


def stacks(tasks: Sequence[FitTask], elements: int, device: torch.device) -> list[list[int]]:
    """Return the tasks' numbers in stacks of one shape, as many together as the device gains by.

    Parameters
    ----------
    tasks : what to fit.
    elements : of one residual, C times D.
    device : to compute on.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for number, task in enumerate(tasks):
        recipe = task.recipe
        rules = (recipe.batch_size, recipe.alpha_rule == "learn", recipe.patience, recipe.precision)
        alike.setdefault((*task.training.directions.shape, task.epochs, *rules), []).append(number)
    most = stack_size(elements, device)
    return [group[start : start + most] for group in alike.values() for start in range(0, len(group), most)]


def stack_size(elements: int, device: torch.device) -> int:
    """Return how many residuals of so many elements are worth a stack."""
    return max(1, (STACKED_ON_CPU if device.type == "cpu" else STACKED_ON_GPU) // elements)


def _fit_stack(tasks: Sequence[FitTask], base: Tensor, logit_scale: float) -> list[Fit]:
    """Train the residuals of tasks of one shape together."""
    started = perf_counter()
    (views, count, _), recipe = tasks[0].training.directions.shape, tasks[0].recipe
    batch = min(recipe.batch_size, count)
    directions, labels, first_rows = _stacked(tasks, base)
    step = ResidualStep(directions, base, logit_scale, [task.recipe for task in tasks], batch)
    epoch = Epoch(step, labels, (len(tasks), count // batch, batch))
    shufflers = [torch.Generator().manual_seed(task.seed) for task in tasks]
    keeper = (
        LastEpoch()
        if recipe.patience is None
        else BestEpoch(recipe.patience, _validations(tasks, base), base, logit_scale)
    )
    losses = []
    for number in range(tasks[0].epochs):
        view = number % views * count
        orders = [
            epoch_order(count, batch, shuffler) + row + view
            for shuffler, row in zip(shufflers, first_rows, strict=True)
        ]
        step.set_rates([learning_rate(number, task.recipe.lr, task.epochs) for task in tasks])
        losses.append(epoch.run(torch.stack(orders)))
        if keeper.has_enough(step):
            break
    return _finished(tasks, step, keeper, torch.stack(losses), perf_counter() - started)


def epoch_order(count: int, batch: int, shuffler: torch.Generator) -> Tensor:
    """Return the shuffled rows of one epoch (steps, B); rows that fill no batch are dropped."""
    return torch.randperm(count, generator=shuffler)[: count // batch * batch].view(-1, batch)


def _stacked(tasks: Sequence[FitTask], base: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Return the directions and labels of all training sets one below the other, and where each task's begin.

    Tasks that share a training set share its rows; the views of a set lie one below the other as well.
    """
    sets = list({id(task.training): task.training for task in tasks}.values())
    views, count, dim = sets[0].directions.shape
    product_type = torch.bfloat16 if tasks[0].recipe.precision == "bf16" else base.dtype
    flat = [torch.from_numpy(training.directions).reshape(views * count, dim) for training in sets]
    placed = [directions.to(base.device, product_type) for directions in flat]
    directions = placed[0] if len(placed) == 1 else torch.cat(placed)  # a set alone is used where it lies
    tiled = np.concatenate([np.tile(training.labels, views) for training in sets])
    labels = torch.from_numpy(tiled).to(base.device, torch.int64)
    row_of = {id(training): number * views * count for number, training in enumerate(sets)}
    return directions, labels, [row_of[id(task.training)] for task in tasks]


def _validations(tasks: Sequence[FitTask], base: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return each task's validation features and labels as tensors; raises OptionError where there are none."""
    found = []
    for task in tasks:
        if task.validation is None or len(task.validation.labels) == 0:
            raise OptionError("patience needs validation images to choose an epoch by, and this split has none")
        features = torch.from_numpy(task.validation.image_features).to(base)
        found.append((features, torch.from_numpy(task.validation.labels).to(base.device, torch.int64)))
    return found


@contextmanager
def _products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Let float32 products use TF32 when that was asked for, and set everything back."""
    if precision == "tf32" and device.type != "cuda":
        raise OptionError(f"precision tf32 needs CUDA, got device {device}; use fp32 or bf16")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(MATMUL_PRECISION[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _finished(
    tasks: Sequence[FitTask], step: ResidualStep, keeper: LastEpoch | BestEpoch, losses: Tensor, seconds: float
) -> list[Fit]:
    """Return the fits of a stack, which share its time; raises FitError where one diverged."""
    kept = keeper.kept(step, len(losses))
    for fit, task in enumerate(tasks):
        _refuse_divergence(losses[:, fit], kept.residuals[fit], task.recipe)
    # A fit alone would have ended with its patience; that others of its stack went on is not its history.
    lasted = [epochs + (task.recipe.patience or 0) for epochs, task in zip(kept.epochs, tasks, strict=True)]
    return [
        Fit(
            residual=kept.residuals[fit].cpu().numpy(),
            alpha=kept.alphas[fit].item() if task.recipe.alpha_rule == "learn" else task.recipe.alpha,
            losses=tuple(losses[: lasted[fit], fit].tolist()),
            kept_epochs=kept.epochs[fit],
            seconds=seconds / len(tasks),
        )
        for fit, task in enumerate(tasks)
    ]


def _refuse_divergence(losses: Tensor, residual: Tensor, recipe: Recipe) -> None:
    finite = losses.isfinite()
    if not (finite.all() and residual.isfinite().all()):
        epoch = int(finite.int().argmin()) if not finite.all() else len(losses) - 1
        raise FitError(f"the fit diverged in epoch {epoch} with lr {recipe.lr} and alpha {recipe.alpha}; lower them")
