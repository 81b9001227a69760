"""`make bench-busy`: fits alone and next to two processes that multiply without end.

Each workload runs in a process of its own, as the command line starts it (waiting OpenMP threads sleep soon) and as
torch has it by default, in turns. A fair share next to two busy processes on two cores takes three times as long.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from statistics import median
from time import perf_counter, sleep

BUSY = """
import torch
left = torch.randn(512, 512)
while True:
    left @ left
"""
SHAPES = {  # name: classes, dimensions, shots, fits, epochs
    "digits": (10, 64, (1, 2, 4, 8, 16), 3, None),
    "Caltech size": (100, 1024, (16,), 1, 100),
    "ImageNet size": (1000, 1024, (16,), 1, 2),
}
ROUNDS = 3


def fit_all(name: str, plain: bool) -> float:
    """Return the seconds of a workload's fits in this process, after one that warms up; plain: with torch's threads."""
    import numpy as np
    import torch

    from taskres_cache.methods.task_residual import loop
    from taskres_cache.methods.task_residual.loop import fit_residuals
    from taskres_cache.methods.task_residual.task import FitTask
    from taskres_cache.methods.training_sets import TrainingSet
    from taskres_cache.recipe import Recipe

    if plain:
        loop.idle_threads_for = lambda operations: nullcontext()  # type: ignore[assignment]
    classes, dim, shots, seeds, epochs = SHAPES[name]
    rng = np.random.default_rng(0)
    base = rng.normal(size=(classes, dim)).astype(np.float32)

    def task(count: int, seed: int, length: int) -> FitTask:
        labels = np.tile(np.arange(classes), count)
        features = (base[labels] + rng.normal(size=(len(labels), dim))).astype(np.float32)
        return FitTask(TrainingSet.from_features(features, labels), Recipe(), length, seed, base=base)

    tasks = [task(count, seed, epochs or Recipe().epochs_for(count)) for count in shots for seed in range(seeds)]
    fit_residuals([task(shots[0], 0, 1)], 100.0, torch.device("cpu"))
    started = perf_counter()
    fit_residuals(tasks, 100.0, torch.device("cpu"))
    return perf_counter() - started


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep processes busy in the meantime."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        sleep(4 if count else 0)  # they import torch
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds(name: str, variables: Mapping[str, str]) -> float:
    """Return the seconds of a workload in a new process; with torch's threads if it has no variables."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--workload", name, *([] if variables else ["--plain"])]
    found = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return float(found.stdout)


def main() -> None:
    """Print the table, or the seconds of one workload."""
    parser = argparse.ArgumentParser(description="time fits alone and next to busy processes")
    parser.add_argument("--workload", choices=tuple(SHAPES), help="time one workload in this process")
    parser.add_argument("--plain", action="store_true", help="with --workload: leave the threads to torch")
    options = parser.parse_args()
    if options.workload:
        print(fit_all(options.workload, options.plain))
        return
    from taskres_cache.system.threads import limit_spinning

    ours: dict[str, str] = {}
    limit_spinning(ours)
    settings = {"taskres": ours, "torch's threads": {}}
    found: dict[tuple[str, str, int], list[float]] = {}
    for busy in (0, 2):
        with busy_processes(busy):
            for _ in range(ROUNDS):
                for name in SHAPES:
                    for setting, variables in settings.items():
                        found.setdefault((name, setting, busy), []).append(seconds(name, variables))
    print(f"{'workload':14} {'settings':16} {'alone':>8} {'busy':>8} {'ratio':>6}")
    for name in SHAPES:
        for setting in settings:
            alone, busy = (median(found[name, setting, busy]) for busy in (0, 2))
            print(f"{name:14} {setting:16} {alone:7.2f}s {busy:7.2f}s {busy / alone:6.1f}")


if __name__ == "__main__":
    main()
