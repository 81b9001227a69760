"""How many threads a computation uses, and how they wait for each other. Waiting must not cost more than working.

OpenMP threads meet at a barrier after each product and wait there. A thread that spins takes a core from the thread
that it waits for as soon as other programs use the cores: 15 fits of the digits took 31 s instead of 0.8 s. A thread
that sleeps at once pays 0.3 ms for every product. So threads spin for as long as a product takes, and small products,
which gain nothing from a second core, use one thread.
"""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

SPIN_COUNT = "3000"  # a step of 1 ms becomes no slower alone (0.58 s for 100 epochs, 0.56 before)
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # the user's own choice of how threads wait
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


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Use one thread for small computations, and for others no more than the cores that this process may use.

    Parameters
    ----------
    operations : float
        Floating-point operations between two points where all threads meet, such as a training step.
    """
    import torch  # not imported by the command line's first lines

    from taskres_cache.system.devices import available_cores

    before = torch.get_num_threads()
    torch.set_num_threads(1 if operations < FEWEST_OPERATIONS else min(before, available_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)
