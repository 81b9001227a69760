"""The order of the images in every epoch, the same on every device, prepared while the device trains.

Axes: K fits of a stack, N training images, V views of each, B images of a batch.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from taskres_cache.methods.task_residual.task import Task

BYTES_AT_ONCE = 1 << 20  # of the orders that are sent to a GPU together


def epoch_orders(
    tasks: Sequence[Task], first_rows: Sequence[int], batch: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the rows (K, steps, B) of each epoch, on the device; epoch e uses view e mod V.

    Parameters
    ----------
    tasks : sequence of Task, of length K
        Of one number of images, views and epochs.
    first_rows : sequence of int, of length K
        Row where the training set of each task begins.
    batch : int
        B.
    device : torch.device
        Where the rows are needed.
    """
    views, count, _ = tasks[0].training.directions.shape
    shufflers = [torch.Generator().manual_seed(task.seed) for task in tasks]
    per_epoch = 8 * len(tasks) * (count // batch) * batch
    together = 1 if device.type == "cpu" else max(1, BYTES_AT_ONCE // per_epoch)
    for first in range(0, tasks[0].epochs, together):
        numbers = range(first, min(first + together, tasks[0].epochs))
        orders = [
            epoch_order(count, batch, shuffler) + (row + number % views * count)
            for number in numbers
            for shuffler, row in zip(shufflers, first_rows, strict=True)
        ]
        stacked = torch.stack(orders).view(len(numbers), len(tasks), -1, batch)
        yield from _sent(stacked, device).unbind(0)


def epoch_order(count: int, batch: int, shuffler: torch.Generator) -> Tensor:
    """Return the shuffled rows of one epoch (steps, B); rows that do not fill a batch are dropped."""
    return torch.randperm(count, generator=shuffler)[: count // batch * batch].view(-1, batch)


def _sent(orders: Tensor, device: torch.device) -> Tensor:
    """Return orders on the device; a GPU takes them from pinned memory while the host goes on.

    A transfer from other memory that does not block may read it after it was freed.
    """
    if device.type == "cuda":
        return orders.pin_memory().to(device, non_blocking=True)
    return orders.to(device)
