"""Stage two: the training loop over cached tensors. Knows no HDF5, no encoder, and is never handed a test feature.

Fits of one shape are stacked and take their steps together where that is faster; a stacked fit is the fit alone.

Axes: K fits of a stack, N training images, V views of each, B images of a batch, C classes, T templates, D embedding,
W width of the text tower.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from taskres_cache.errors import FitError, OptionError
from taskres_cache.methods.task_residual.early_stopping import BestEpoch, Kept, LastEpoch
from taskres_cache.methods.task_residual.epoch import Epoch
from taskres_cache.methods.task_residual.step import ProjectionStep, ResidualStep, Step
from taskres_cache.methods.training_data import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe, learning_rate

STACKED_ON_CPU = 1 << 16  # elements of all residuals together; from there on a stack gains nothing (measured)
STACKED_ON_GPU = 1 << 28  # elements: six arrays of this size, 6 GiB, and launches no longer count
MATMUL_PRECISION = {"fp32": "highest", "tf32": "high", "bf16": "highest"}


@dataclass(frozen=True)
class Task:
    """Something to be trained on one split.

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
class FitTask(Task):
    """A residual to be fitted on a base (C, D), whose floating type is the one that everything is computed in."""

    base: np.ndarray = field(kw_only=True)


@dataclass(frozen=True)
class Fit:
    """A trained residual.

    Parameters
    ----------
    residual : (C, D); zero where the image side alone is trained.
    image_residual : (D,), or None where the text side alone is.
    alpha : of both.
    losses : the mean loss of each epoch.
    kept_epochs : after how many it was taken.
    seconds : that it took; a stack's time is shared out.
    """

    residual: np.ndarray
    image_residual: np.ndarray | None
    alpha: float
    losses: tuple[float, ...]
    kept_epochs: int
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether a loss or what was trained is NaN or infinite."""
        return not all_finite(self.losses, self.residual, () if self.image_residual is None else self.image_residual)


@dataclass(frozen=True)
class ProjectionFit:
    """A tuned text projection (W, D), the mean loss of each epoch, the epochs that it keeps, and its seconds."""

    projection: np.ndarray
    losses: tuple[float, ...]
    kept_epochs: int
    seconds: float


def fit_residuals(tasks: Sequence[FitTask], logit_scale: float, device: torch.device) -> list[Fit]:
    """Train every task's residual, stacked where that is faster.

    Parameters
    ----------
    tasks : what to fit; those of one shape may be stacked.
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
    fits = try_residuals(tasks, logit_scale, device)
    for task, fit in zip(tasks, fits, strict=True):
        if fit.diverged:
            raise _divergence(fit.losses, task.recipe)
    return fits


def try_residuals(tasks: Sequence[FitTask], logit_scale: float, device: torch.device) -> list[Fit]:
    """Train every task's residual as `fit_residuals` does, and return those that diverged as well."""
    if not tasks:
        return []
    of_numbers: dict[int, Fit] = {}
    for numbers in stacks(tasks, tasks[0].base.size, device):
        stack = [tasks[number] for number in numbers]
        base = _stacked_bases(stack).to(device)
        step = partial(ResidualStep, base=base, logit_scale=logit_scale, recipes=[task.recipe for task in stack])
        trained = _trained(stack, base, step)
        of_numbers |= zip(numbers, (_as_fit(one, task) for one, task in zip(trained, stack, strict=True)), strict=True)
    return [of_numbers[number] for number in range(len(tasks))]


def tune_projections(
    tasks: Sequence[Task], pre_projection: np.ndarray, projection: np.ndarray, logit_scale: float, device: torch.device
) -> list[ProjectionFit]:
    """Tune the text projection of an enhanced base on every task's images, and nothing else of the text tower.

    Parameters
    ----------
    tasks : what to tune on; those of one shape may be stacked.
    pre_projection : (C, W) mean over templates of what the projection is fed.
    projection : (W, D) to start from; its floating type is the one that everything is computed in.
    logit_scale, device : see `fit_residuals`.

    Raises
    ------
    FitError, OptionError : see `fit_residuals`.

    Notes
    -----
    Source: TaskRes, section 4.1 (enhanced base), whose code is not released; decay pulls towards zero, as there.
    """
    of_numbers: dict[int, ProjectionFit] = {}
    prompts, first = torch.from_numpy(pre_projection).to(device), torch.from_numpy(projection).to(device)
    for numbers in stacks(tasks, projection.size, device):
        stack = [tasks[number] for number in numbers]
        recipes = [task.recipe for task in stack]
        step = partial(
            ProjectionStep, pre_projection=prompts, projection=first, logit_scale=logit_scale, recipes=recipes
        )
        for number, one in zip(numbers, _trained(stack, first, step), strict=True):
            tuned = one.values["projection"].cpu().numpy()
            if not all_finite(one.losses, tuned):
                raise _divergence(one.losses, tasks[number].recipe)
            of_numbers[number] = ProjectionFit(tuned, one.losses, one.kept_epochs, one.seconds)
    return [of_numbers[number] for number in range(len(tasks))]


def all_finite(*arrays: Sequence[float] | np.ndarray) -> bool:
    """Return whether nothing in any of the arrays is NaN or infinite."""
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _divergence(losses: Sequence[float], recipe: Recipe) -> FitError:
    """Return the error that names the first epoch whose loss is no number, or else the last."""
    finite = np.isfinite(losses)
    epoch = len(losses) - 1 if finite.all() else int(finite.argmin())
    return FitError(f"the fit diverged in epoch {epoch} with lr {recipe.lr} and alpha {recipe.alpha}; lower them")


def stacks(tasks: Sequence[Task], elements: int, device: torch.device) -> list[list[int]]:
    """Return the tasks' numbers in stacks of one shape, as many together as the device gains by.

    Parameters
    ----------
    tasks : what to train.
    elements : of what one task trains, C times D or W times D.
    device : to compute on.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for number, task in enumerate(tasks):
        recipe = task.recipe
        rules = (recipe.batch_size, recipe.alpha_rule == "learn", recipe.residual, recipe.patience, recipe.precision)
        alike.setdefault((*task.training.directions.shape, task.epochs, *rules), []).append(number)
    most = stack_size(elements, device)
    return [group[start : start + most] for group in alike.values() for start in range(0, len(group), most)]


def stack_size(elements: int, device: torch.device) -> int:
    """Return how many fits of so many elements are worth a stack."""
    return max(1, (STACKED_ON_CPU if device.type == "cpu" else STACKED_ON_GPU) // elements)


@dataclass(frozen=True)
class _Trained:
    """What one task came to, by name, and how."""

    values: dict[str, Tensor]
    losses: tuple[float, ...]
    kept_epochs: int
    seconds: float


def _trained(tasks: Sequence[Task], like: Tensor, step_of: Callable[..., Step]) -> list[_Trained]:
    """Train what tasks of one shape train, together, in the type and on the device of `like`."""
    with _products_in(tasks[0].recipe.precision, like.device):
        started = perf_counter()
        (views, count, _), recipe = tasks[0].training.directions.shape, tasks[0].recipe
        batch = min(recipe.batch_size, count)
        directions, lengths, labels, first_rows = _stacked(tasks, like)
        step = step_of(directions, lengths, batch_size=batch)
        epoch = Epoch(step, labels, (len(tasks), count // batch, batch))
        shufflers = [torch.Generator().manual_seed(task.seed) for task in tasks]
        keeper = _keeper(tasks, like)
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
        kept = keeper.kept(step, len(tasks), len(losses))
        return _shared_out(tasks, kept, torch.stack(losses), perf_counter() - started)


def epoch_order(count: int, batch: int, shuffler: torch.Generator) -> Tensor:
    """Return the shuffled rows of one epoch (steps, B); rows that fill no batch are dropped."""
    return torch.randperm(count, generator=shuffler)[: count // batch * batch].view(-1, batch)


def _stacked(tasks: Sequence[Task], like: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Return directions, lengths and labels of all training sets one below the other, and where each task's begin.

    Tasks that share a training set share its rows; the views of a set lie one below the other as well.
    """
    sets = list({id(task.training): task.training for task in tasks}.values())
    views, count, dim = sets[0].directions.shape
    product_type = torch.bfloat16 if tasks[0].recipe.precision == "bf16" else like.dtype
    flat = [torch.from_numpy(training.directions).reshape(views * count, dim) for training in sets]
    placed = [directions.to(like.device, product_type) for directions in flat]
    directions = placed[0] if len(placed) == 1 else torch.cat(placed)  # a set alone is used where it lies
    lengths = torch.from_numpy(np.concatenate([training.lengths.reshape(-1) for training in sets])).to(like)
    tiled = np.concatenate([np.tile(training.labels, views) for training in sets])
    labels = torch.from_numpy(tiled).to(like.device, torch.int64)
    row_of = {id(training): number * views * count for number, training in enumerate(sets)}
    return directions, lengths, labels, [row_of[id(task.training)] for task in tasks]


def _stacked_bases(tasks: Sequence[FitTask]) -> Tensor:
    """Return the base (C, D) of all tasks, or (K, C, D) where they have bases of their own."""
    bases = {id(task.base): task.base for task in tasks}
    if len(bases) == 1:
        return torch.from_numpy(tasks[0].base)
    return torch.stack([torch.from_numpy(task.base) for task in tasks])


def _keeper(tasks: Sequence[Task], like: Tensor) -> LastEpoch | BestEpoch:
    """Return what decides which epoch is kept; raises OptionError where there is nothing to decide it by."""
    patience = tasks[0].recipe.patience
    if patience is None:
        return LastEpoch()
    found = []
    for task in tasks:
        if task.validation is None or len(task.validation.labels) == 0:
            raise OptionError("patience needs validation images to choose an epoch by, and this split has none")
        features = torch.from_numpy(task.validation.image_features).to(like)
        found.append((features, torch.from_numpy(task.validation.labels).to(like.device, torch.int64)))
    return BestEpoch(patience, found)


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


def _shared_out(tasks: Sequence[Task], kept: Kept, losses: Tensor, seconds: float) -> list[_Trained]:
    """Return what each task of a stack came to; they share its time."""
    # A fit alone would have ended with its patience; that others of its stack went on is not its history.
    lasted = [epochs + (task.recipe.patience or 0) for epochs, task in zip(kept.epochs, tasks, strict=True)]
    return [
        _Trained(kept.values[fit], tuple(losses[: lasted[fit], fit].tolist()), kept.epochs[fit], seconds / len(tasks))
        for fit in range(len(tasks))
    ]


def _as_fit(trained: _Trained, task: FitTask) -> Fit:
    """Return what a residual's training came to; a side that was not trained is zero, or not there."""
    values = {name: value.cpu().numpy() for name, value in trained.values.items()}
    image = values.get("image_residual")
    return Fit(
        residual=values.get("residual", np.zeros_like(task.base)),
        image_residual=None if image is None else image[0],
        alpha=values["alpha"].item() if task.recipe.alpha_rule == "learn" else task.recipe.alpha,
        losses=trained.losses,
        kept_epochs=trained.kept_epochs,
        seconds=trained.seconds,
    )
