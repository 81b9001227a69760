"""How many threads a computation uses, and how they wait for each other. Waiting must not cost more than working.

OpenMP threads meet at a barrier after each product and wait there. A thread that spins takes a core from the thread
that it waits for as soon as other programs use the cores: 15 fits of the digits took 31 s instead of 0.8 s. A thread
that sleeps at once pays 0.3 ms for every product. So threads spin for as long as a product takes, small products, which
gain nothing from a second core, use one thread, and large ones no more threads than there are idle cores. The number of
threads does not change the bits of a fit (tried from 10 classes x 512 to 1,000 x 1,024 dimensions).
"""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import sleep

SPIN_COUNT = "3000"  # a step of 1 ms becomes no slower alone (0.58 s for 100 epochs, 0.56 before)
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # the user's own choice of how threads wait
LOAD = Path("/proc/loadavg")
SAMPLES, BETWEEN = 5, 0.001  # seconds; a single look may catch a moment of rest
FEWEST_OPERATIONS = 16e6  # of a step; below, a second thread gains less than a fifth (measured on two cores)


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP threads sleep soon if there is nothing to do; has an effect only before torch is imported.

    Parameters
    ----------
    environment : mapping of str to str
        The variables of the process. Nothing is changed if they say how threads wait.
    """
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def idle_cores(load: Path = LOAD) -> int:
    """Return how many cores of the machine have nothing to do, this thread's own included; all if that is not known.

    Parameters
    ----------
    load : Path
        The kernel's file; its fourth field is "running threads/all threads".
    """
    cores = os.cpu_count() or 1
    try:
        return max(0, cores - (int(median(_running(load) for _ in range(SAMPLES))) - 1))
    except (OSError, IndexError, ValueError):  # not Linux
        return cores


def _running(load: Path) -> int:
    """Return the number of running threads of the machine, a moment later."""
    sleep(BETWEEN)
    return int(load.read_text().split()[3].split("/")[0])


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Use one thread for small computations, and for others no more than the cores that this process may use.

    Parameters
    ----------
    operations : float
        Floating-point operations between two points where all threads meet, such as a training step.
    """
    with _threads(1 if operations < FEWEST_OPERATIONS else _granted()):
        yield


@contextmanager
def idle_threads_for(operations: float) -> Iterator[None]:
    """Use threads as `threads_for` does, but no more than there are idle cores.

    Only for computations whose bits do not depend on the number of threads.
    """
    with _threads(1 if operations < FEWEST_OPERATIONS else max(1, min(_granted(), idle_cores()))):
        yield


def _granted() -> int:
    """Return how many threads torch would use, at most one per core that this process may use."""
    import torch  # not imported by the command line's first lines

    from taskres_cache.system.devices import available_cores

    return min(torch.get_num_threads(), available_cores())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
