"""Several processes at one extraction, as torchrun starts them: who is who, and what they tell each other.

Nothing but small Python objects goes from process to process (by gloo, on the CPU): features go by way of the blocks,
which all ranks write into the same folder.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from taskres_cache.errors import RankError, TaskresError

PATIENCE = timedelta(days=7)  # a rank with slower images is waited for; one that died is noticed by its connection

T = TypeVar("T")


class Ranks:
    """A process that works alone: the first of one."""

    number = 0
    count = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, assembles and speaks."""
        return self.number == 0

    def agreed(self, decide: Callable[[], T]) -> T:
        """Return what the first rank decides; an error of its decision ends every rank."""
        return decide()

    def gathered(self, own: T) -> list[T]:
        """Return what every rank has to say, in their order, once the last has said it."""
        return [own]


class TorchrunRanks(Ranks):
    """One of the processes that torchrun started."""

    def __init__(self) -> None:
        self.number, self.count = dist.get_rank(), dist.get_world_size()

    def agreed(self, decide: Callable[[], T]) -> T:
        """Return what the first rank decides; raises RankError on all others when it cannot."""
        failure: TaskresError | None = None
        told: list[tuple[T] | None] = [None]
        if self.first:
            try:
                told = [(decide(),)]
            except TaskresError as error:
                failure = error
        dist.broadcast_object_list(told, src=0)
        if failure is not None:
            raise failure
        if told[0] is None:
            raise RankError(f"rank {self.number} stops: rank 0 cannot go on, and says why")
        return told[0][0]

    def gathered(self, own: T) -> list[T]:
        """Return what every rank has to say, in their order, once the last has said it."""
        heard: list[T | None] = [None] * self.count
        dist.all_gather_object(heard, own)
        return [said for said in heard if said is not None]


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Yield this process's place among those that torchrun started, or that of a process alone.

    Raises
    ------
    RankError : the other processes cannot be reached, or one of them went away.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
        yield TorchrunRanks()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RankError(f"the other ranks went away ({reason}); what is finished is kept: start again") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
