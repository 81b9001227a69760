"""Stage two: the training loop over cached features. Uses no HDF5 and no encoder, and is never given a test feature.

Axes: K fits of a stack, N training images, V views of each, B images of a batch, C classes, D embedding, W width of the
text tower.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from taskres_cache.errors import FitError, OptionError
from taskres_cache.methods.task_residual.early_stopping import BestEpoch, KeptValues, LastEpoch
from taskres_cache.methods.task_residual.epoch import Epoch
from taskres_cache.methods.task_residual.orders import epoch_orders
from taskres_cache.methods.task_residual.stacking import (
    in_rows,
    placed_validations,
    stacked_bases,
    stacked_images,
    train_stacked,
)
from taskres_cache.methods.task_residual.step import ProjectionStep, ResidualStep, Step
from taskres_cache.methods.task_residual.task import Fit, FitTask, ProjectionFit, Task
from taskres_cache.recipe import Recipe, learning_rate
from taskres_cache.system.accelerator import computing_on
from taskres_cache.system.threads import idle_threads_for

MATMUL_PRECISION = {"fp32": "highest", "tf32": "high", "bf16": "highest"}


def fit_residuals(tasks: Sequence[FitTask], logit_scale: float, device: torch.device) -> list[Fit]:
    """Train the residual of every task, stacked where that is faster.

    Parameters
    ----------
    tasks : sequence of FitTask
        What to fit.
    logit_scale : float
        Multiplier of the cosines.
    device : torch.device
        Where to compute.

    Raises
    ------
    FitError
        A loss or a residual became NaN or infinite.
    OptionError
        The device does not have the precision, or a recipe with patience has no validation images.

    Notes
    -----
    Source: TaskRes, section 4.1, and its released code: batches are reshuffled each epoch; the last, short batch is
    dropped only if there is at least one full batch.
    """
    fits = try_residuals(tasks, logit_scale, device)
    for task, fit in zip(tasks, fits, strict=True):
        _check_convergence(fit, task.recipe)
    return fits


def try_residuals(tasks: Sequence[FitTask], logit_scale: float, device: torch.device) -> list[Fit]:
    """Train the residual of every task as `fit_residuals` does, but also return fits that diverged."""

    def train(stack: list[FitTask]) -> list[Fit]:
        base = in_rows(stacked_bases(stack), device)
        step = partial(ResidualStep, base=base, logit_scale=logit_scale, recipes=[task.recipe for task in stack])
        with idle_threads_for(len(stack) * _operations(stack[0], base)):
            trained = _train(stack, base, step)
        return [_residual_fit(one, task) for one, task in zip(trained, stack, strict=True)]

    return train_stacked(tasks, tasks[0].base.size, device, train) if tasks else []


def tune_projections(
    tasks: Sequence[Task], pre_projection: np.ndarray, projection: np.ndarray, logit_scale: float, device: torch.device
) -> list[ProjectionFit]:
    """Tune the text projection of an enhanced base on the images of every task, and nothing else of the text tower.

    Parameters
    ----------
    tasks : sequence of Task
        What to tune on.
    pre_projection : ndarray of shape (C, W)
        Input of the projection, mean over templates.
    projection : ndarray of shape (W, D)
        The projection to start from. Its floating type is used for all computation.
    logit_scale : float
        Multiplier of the cosines.
    device : torch.device
        Where to compute.

    Raises
    ------
    FitError
        A loss or a projection became NaN or infinite.
    OptionError
        As in `fit_residuals`.

    Notes
    -----
    Source: TaskRes, section 4.1 (enhanced base), whose code is not released; weight decay pulls towards zero, as there.
    """
    text, first = (in_rows(torch.from_numpy(array), device) for array in (pre_projection, projection))

    def train(stack: list[Task]) -> list[ProjectionFit]:
        recipes = [task.recipe for task in stack]
        step = partial(ProjectionStep, pre_projection=text, projection=first, logit_scale=logit_scale, recipes=recipes)
        with idle_threads_for(len(stack) * _operations(stack[0], text)):
            fits = [_projection_fit(trained) for trained in _train(stack, first, step)]
        for fit, recipe in zip(fits, recipes, strict=True):
            _check_convergence(fit, recipe)
        return fits

    return train_stacked(tasks, projection.size, device, train)


def _operations(task: Task, text: Tensor) -> float:
    """Return the operations of the host in the two products of a task's step, with text (..., C, D) or (C, W)."""
    if text.device.type != "cpu":
        return 0.0  # no threads, and no time to count idle cores
    batch = min(task.recipe.batch_size, len(task.training.labels))
    return 4.0 * batch * text.shape[-2] * text.shape[-1]


def _check_convergence(fit: Fit | ProjectionFit, recipe: Recipe) -> None:
    """Raise FitError for a fit that diverged; it names the first epoch whose loss is not finite, or else the last."""
    if not fit.diverged:
        return
    finite = np.isfinite(fit.losses)
    what, epoch = ("result", len(finite) - 1) if finite.all() else ("loss", int(finite.argmin()))
    raise FitError(
        f"the {what} became NaN or infinite in epoch {epoch} with lr {recipe.lr} and alpha {recipe.alpha}; lower them"
    )


@dataclass(frozen=True)
class _Trained:
    """The values that a task has trained, by name, with losses, epochs and time as in `Fit`."""

    values: dict[str, np.ndarray]
    losses: tuple[float, ...]
    kept_epochs: int
    seconds: float = 0.0


def _train(tasks: Sequence[Task], base: Tensor, step_of: Callable[..., Step]) -> list[_Trained]:
    """Train tasks of one shape together, in the type and on the device of `base`."""
    recipe = tasks[0].recipe
    with computing_on(base.device), _matmul_precision(recipe.precision, base.device):
        started = perf_counter()
        count, epochs = tasks[0].training.directions.shape[1], tasks[0].epochs
        batch = min(recipe.batch_size, count)
        images = stacked_images(tasks, base)
        step = step_of(images.directions, images.lengths, batch_size=batch)
        epoch = Epoch(step, images.labels, (len(tasks), count // batch, batch))
        selection = _selection(tasks, base)
        losses = []
        for number, order in enumerate(epoch_orders(tasks, images.first_rows, batch, base.device)):
            step.set_rates([learning_rate(number, task.recipe.lr, epochs) for task in tasks])
            losses.append(epoch.run(order))
            if selection.should_stop(step):
                break
        trained = _split(tasks, selection.kept(step, len(tasks), len(losses)), torch.stack(losses).cpu())
        seconds = (perf_counter() - started) / len(tasks)  # read after the results: a GPU lags behind the host
        return [replace(one, seconds=seconds) for one in trained]


def _selection(tasks: Sequence[Task], base: Tensor) -> LastEpoch | BestEpoch:
    """Return what selects the epoch to keep; raise OptionError if that needs validation images and there are none."""
    patience = tasks[0].recipe.patience
    if patience is None:
        return LastEpoch()
    validations = [task.validation for task in tasks if task.validation is not None and len(task.validation.labels)]
    if len(validations) < len(tasks):
        raise OptionError(
            "patience needs validation images to choose an epoch by, and this split has none; leave patience out"
        )
    return BestEpoch(patience, placed_validations(validations, base))


@contextmanager
def _matmul_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Let float32 products use TF32 if the recipe says so, and restore torch's setting afterwards."""
    if precision == "tf32" and device.type != "cuda":
        raise OptionError(f"precision tf32 needs CUDA, got device {device}; use fp32 or bf16")
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    per_backend = [backend.fp32_precision for backend in backends]
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to say it if the program has set fp32_precision of a backend
        before = None
    torch.set_float32_matmul_precision(MATMUL_PRECISION[precision])
    try:
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)
        else:
            for backend, setting in zip(backends, per_backend, strict=True):
                backend.fp32_precision = setting


def _split(tasks: Sequence[Task], kept: KeptValues, losses: Tensor) -> list[_Trained]:
    """Split the result of a stack into one per task, on the host."""
    # A fit alone would have stopped when its patience ran out; epochs that it ran for others of its stack are dropped.
    lasted = [epochs + (task.recipe.patience or 0) for epochs, task in zip(kept.epochs, tasks, strict=True)]
    return [
        _Trained(
            {name: value.cpu().numpy() for name, value in kept.values[fit].items()},
            tuple(losses[: lasted[fit], fit].tolist()),
            kept.epochs[fit],
        )
        for fit in range(len(tasks))
    ]


def _residual_fit(trained: _Trained, task: FitTask) -> Fit:
    """Return the fit of a residual; a text residual that was not trained is zero, an image residual None."""
    image = trained.values.get("image_residual")
    return Fit(
        residual=trained.values.get("residual", np.zeros_like(task.base)),
        image_residual=None if image is None else image[0],
        alpha=trained.values["alpha"].item() if task.recipe.alpha_rule == "learn" else task.recipe.alpha,
        losses=trained.losses,
        kept_epochs=trained.kept_epochs,
        seconds=trained.seconds,
    )


def _projection_fit(trained: _Trained) -> ProjectionFit:
    return ProjectionFit(trained.values["projection"], trained.losses, trained.kept_epochs, trained.seconds)
