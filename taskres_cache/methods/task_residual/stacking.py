"""Fits of one shape, stacked so that they take their steps together; a stacked fit equals the fit alone.

Axes: K fits of a stack, N training images, V views of each, C classes, D embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from taskres_cache.methods.task_residual.task import FitTask, Task

STACKED_ON_CPU = 1 << 16  # elements of all residuals of a stack; larger stacks gain nothing (measured)
STACKED_ON_GPU = 1 << 28  # six arrays of this size take 6 GiB; the time of kernel launches is negligible by then

TaskT = TypeVar("TaskT", bound=Task)
FitT = TypeVar("FitT")


def train_stacked(
    tasks: Sequence[TaskT], elements: int, device: torch.device, train: Callable[[list[TaskT]], list[FitT]]
) -> list[FitT]:
    """Return the fit of every task, trained stack by stack.

    Parameters
    ----------
    tasks : sequence of Task
        What to train.
    elements : int
        Size of what one task trains, C times D or W times D.
    device : torch.device
        Where to compute.
    train : callable
        Returns the fits of the tasks of one stack.
    """
    fits: dict[int, FitT] = {}
    for numbers in stacks(tasks, elements, device):
        fits |= zip(numbers, train([tasks[number] for number in numbers]), strict=True)
    return [fits[number] for number in range(len(tasks))]


def stacks(tasks: Sequence[Task], elements: int, device: torch.device) -> list[list[int]]:
    """Return the positions of tasks in stacks of one shape, each as large as the device benefits from.

    Parameters
    ----------
    tasks, elements, device : sequence of Task, int, torch.device
        As in `train_stacked`.
    """
    same_shape: dict[tuple[object, ...], list[int]] = {}
    for number, task in enumerate(tasks):
        recipe = task.recipe
        rules = (recipe.batch_size, recipe.alpha_rule == "learn", recipe.residual, recipe.patience, recipe.precision)
        same_shape.setdefault((*task.training.directions.shape, task.epochs, *rules), []).append(number)
    size = stack_size(elements, device)
    return [group[first : first + size] for group in same_shape.values() for first in range(0, len(group), size)]


def stack_size(elements: int, device: torch.device) -> int:
    """Return how many fits of a size (number of elements) to stack."""
    return max(1, (STACKED_ON_CPU if device.type == "cpu" else STACKED_ON_GPU) // elements)


@dataclass(frozen=True)
class StackedImages:
    """The training images of a stack: the views of all training sets in one array, one below the other.

    Parameters
    ----------
    directions : Tensor of shape (rows, D)
        Normalised, in the type of the products' operands.
    lengths : Tensor of shape (rows,)
        Lengths before normalising.
    labels : Tensor of shape (rows,), int64
        Labels of the rows.
    first_rows : list of int, of length K
        Row where the training set of each task begins; tasks with the same training set share its rows.
    """

    directions: Tensor
    lengths: Tensor
    labels: Tensor
    first_rows: list[int]


def stacked_images(tasks: Sequence[Task], base: Tensor) -> StackedImages:
    """Return the training images of tasks, on the device and in the type of a base; directions may be bfloat16."""
    sets = list({id(task.training): task.training for task in tasks}.values())
    views, count, dim = sets[0].directions.shape
    product_type = torch.bfloat16 if tasks[0].recipe.precision == "bf16" else base.dtype
    flat = [torch.from_numpy(training.directions).reshape(views * count, dim) for training in sets]
    placed = [directions.to(base.device, product_type) for directions in flat]
    directions = placed[0] if len(placed) == 1 else torch.cat(placed)  # a single set is used without a copy
    lengths = torch.from_numpy(np.concatenate([training.lengths.reshape(-1) for training in sets])).to(base)
    tiled = np.concatenate([np.tile(training.labels, views) for training in sets])
    labels = torch.from_numpy(tiled).to(base.device, torch.int64)
    row_of = {id(training): number * views * count for number, training in enumerate(sets)}
    return StackedImages(directions, lengths, labels, [row_of[id(task.training)] for task in tasks])


def stacked_bases(tasks: Sequence[FitTask]) -> Tensor:
    """Return the base (C, D) that all tasks share, or (K, C, D) if they have different ones."""
    bases = {id(task.base): task.base for task in tasks}
    if len(bases) == 1:
        return torch.from_numpy(tasks[0].base)
    return torch.stack([torch.from_numpy(task.base) for task in tasks])
