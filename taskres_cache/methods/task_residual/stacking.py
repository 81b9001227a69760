"""Fits of one shape, stacked so that they take their steps together; a stacked fit equals the fit alone.

Axes: K fits of a stack, N training images, V views of each, C classes, D embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from taskres_cache.errors import OptionError
from taskres_cache.methods.task_residual.task import FitTask, Task
from taskres_cache.methods.training_sets import ValidationSet
from taskres_cache.system.accelerator import free_memory, is_out_of_memory, return_unused_memory

STACKED_ON_CPU = 1 << 16  # elements of all residuals of a stack; larger stacks gain nothing (measured)
STACKED_ON_GPU = 1 << 28  # eight arrays of this size take 8 GiB; the time of kernel launches is negligible by then
SHARE_OF_FREE_MEMORY = 0.6  # of a GPU, for one stack; the rest is for workspaces and results
ARRAYS_PER_FIT = 8  # of the trained size: value, gradient, two moments, base, best epoch, and those of its head

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
        fits |= zip(numbers, _train_what_fits([tasks[number] for number in numbers], device, train), strict=True)
    return [fits[number] for number in range(len(tasks))]


def _train_what_fits(
    stack: list[TaskT], device: torch.device, train: Callable[[list[TaskT]], list[FitT]]
) -> list[FitT]:
    """Train a stack; halve it as long as the device runs out of memory."""
    try:
        return train(stack)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(stack) == 1:
            raise OptionError(
                f"device {device} has too little memory for one fit; free some of its memory, or use --device cpu"
            ) from error
    return_unused_memory(device)  # here, as the error above keeps the stack's tensors
    half = len(stack) // 2
    return [fit for part in (stack[:half], stack[half:]) for fit in _train_what_fits(part, device, train)]


def stacks(tasks: Sequence[Task], elements: int, device: torch.device) -> list[list[int]]:
    """Return the positions of tasks in stacks of one shape, each as large as the device benefits from.

    Parameters
    ----------
    tasks, elements, device : sequence of Task, int, torch.device
        As in `train_stacked`.

    Notes
    -----
    A GPU's free memory limits the size. Up to rounding this changes nothing: a stacked fit equals the fit alone.
    """
    same_shape: dict[tuple[object, ...], list[int]] = {}
    for number, task in enumerate(tasks):
        recipe = task.recipe
        rules = (recipe.batch_size, recipe.alpha_rule == "learn", recipe.residual, recipe.patience, recipe.precision)
        same_shape.setdefault((*task.training.directions.shape, task.epochs, *rules), []).append(number)
    found = []
    for group in same_shape.values():
        fitting = fits_in_memory([tasks[number] for number in group], elements, device)
        size = min(stack_size(elements, device), fitting)
        found += [group[first : first + size] for first in range(0, len(group), size)]
    return found


def stack_size(elements: int, device: torch.device) -> int:
    """Return how many fits of a size (number of elements) to stack."""
    return max(1, (STACKED_ON_CPU if device.type == "cpu" else STACKED_ON_GPU) // elements)


def fits_in_memory(tasks: Sequence[Task], elements: int, device: torch.device) -> int:
    """Return how many of some tasks of one shape, at least one, fit into the free memory of a device together."""
    free = free_memory(device)
    if free is None:
        return len(tasks)
    training, batch_size = tasks[0].training, tasks[0].recipe.batch_size
    _, count, dim = training.directions.shape
    classes, batch = int(training.labels.max()) + 1, min(batch_size, count)
    sets = len({id(task.training) for task in tasks})
    of_images = 2 * training.directions.size * sets  # twice: several sets are joined
    buffers = batch * (3 * dim + 4 * classes)
    per_fit = ARRAYS_PER_FIT * elements + buffers + of_images / len(tasks)
    return max(1, int(SHARE_OF_FREE_MEMORY * free / (per_fit * training.directions.itemsize)))


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


def placed_validations(validations: Sequence[ValidationSet], base: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return features (M, D), in the type of a base, and labels (M,) on its device; each set is sent once."""
    placed = {}
    for key, one in {id(one): one for one in validations}.items():
        labels = torch.from_numpy(one.labels).to(base.device, torch.int64)
        placed[key] = (torch.from_numpy(one.image_features).to(base), labels)
    return [placed[id(one)] for one in validations]


def stacked_bases(tasks: Sequence[FitTask]) -> Tensor:
    """Return the base (C, D) that all tasks share, or (K, C, D) if they have different ones."""
    bases = {id(task.base): task.base for task in tasks}
    if len(bases) == 1:
        return torch.from_numpy(tasks[0].base)
    return torch.stack([torch.from_numpy(task.base) for task in tasks])


def in_rows(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; on a GPU also contiguous, as Adam works on flat pieces of what starts from it.

    On a CPU another layout stays, because it decides the last bits of a product.
    """
    placed = tensor.to(device)
    return placed if device.type == "cpu" else placed.contiguous()
