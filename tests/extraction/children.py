"""Forked child processes, which a test may kill."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkProcess

import torch

forked = multiprocessing.get_context("fork")  # a forked child has torch and the model loaded: it starts in milliseconds


def in_a_child(work: Callable[[], object]) -> ForkProcess:
    """Start `work` in a forked process without output."""

    def run() -> None:
        torch.set_num_threads(1)  # OpenMP threads do not survive a fork
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()

    child = forked.Process(target=run)
    child.start()
    return child
