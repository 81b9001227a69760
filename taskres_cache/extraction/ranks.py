"""Several processes on one extraction, as torchrun starts them: their numbers, and what they exchange.

The processes exchange only small Python objects (by gloo, on the CPU). Features pass through the blocks, which all
ranks write into the same folder.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from taskres_cache.errors import RankError, TaskresError

TIMEOUT = timedelta(days=7)  # wait for a rank with slower images; a rank that dies is noticed by its closed connection

T = TypeVar("T")


class Ranks:
    """A single process: rank 0 of 1."""

    number = 0
    count = 1

    @property
    def first(self) -> bool:
        """True for the process that plans, assembles the cache and prints."""
        return self.number == 0

    def agreed(self, decide: Callable[[], T]) -> T:
        """Return what the first rank decides; if it raises an error, every rank stops."""
        return decide()

    def gathered(self, own: T) -> list[T]:
        """Return the values of all ranks, in order; waits for the last one."""
        return [own]


class TorchrunRanks(Ranks):
    """One of several processes that torchrun started."""

    def __init__(self) -> None:
        self.number, self.count = dist.get_rank(), dist.get_world_size()

    def agreed(self, decide: Callable[[], T]) -> T:
        """Return what the first rank decides; raises its error there, and RankError on all other ranks."""
        failure: TaskresError | None = None
        decision: list[tuple[T] | None] = [None]
        if self.first:
            try:
                decision = [(decide(),)]
            except TaskresError as error:
                failure = error
        with _reported_loss():
            dist.broadcast_object_list(decision, src=0)
        if failure is not None:
            raise failure
        if decision[0] is None:
            raise RankError(f"rank {self.number} stops because rank 0 failed; see the message of rank 0")
        return decision[0][0]

    def gathered(self, own: T) -> list[T]:
        """Return the values of all ranks, in order; waits for the last one."""
        values: list[T | None] = [None] * self.count
        with _reported_loss():
            dist.all_gather_object(values, own)
        return [value for value in values if value is not None]


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Yield this process's rank among those that torchrun started, or rank 0 of 1.

    Raises
    ------
    RankError
        The other processes cannot be reached, or one of them ended early.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    try:
        with _reported_loss():
            dist.init_process_group("gloo", timeout=TIMEOUT)
        yield TorchrunRanks()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _reported_loss() -> Iterator[None]:
    """Raise RankError if an exchange with the other ranks fails; an error of the work in between keeps its own name."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RankError(
            f"lost the connection to the other ranks ({reason}); finished blocks are kept: run the same command again"
        ) from error
