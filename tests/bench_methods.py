"""`make bench-methods`: the time of every method on the paper's shots and seeds, at the size of Caltech101.

Random features of 100 classes, 1,024 dimensions and four augmented views per image; 1, 2, 4, 8 and 16 shots, three
seeds. With --plain, each method's loop in `plain_methods.py`, written with autograd or scikit-learn as research code
has it, runs right after the method's own fit, at 16 shots; the ratio is plain to ours.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch

from taskres_cache.methods.few_shot import FewShotTask, Images
from taskres_cache.methods.method import Method
from taskres_cache.methods.names import expanded
from taskres_cache.methods.registry import find_method
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe
from tests.methods.tasks import random_task
from tests.plain_methods import PLAIN

CLASSES, DIM, WIDTH, VIEWS = 100, 1024, 2048, 4
SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
CPU = torch.device("cpu")


def task_of(shots: int, seed: int) -> FewShotTask:
    """Return a random task of the size of Caltech101, with at most four validation images per class."""
    return random_task(
        classes=CLASSES,
        shots=shots,
        dim=DIM,
        views=VIEWS,
        templates=1,
        val_per_class=min(shots, 4),
        pre_projection_width=WIDTH,
        seed=seed,
        dtype=np.float32,
    )


def fit_taskres(task: FewShotTask) -> None:
    """Fit a task residual with the paper's recipe."""
    views = task.augmented.image_features
    training = TrainingSet.from_views(views, task.train.labels)
    recipe = Recipe(views=len(views))
    one = FitTask(training, recipe, recipe.epochs_for(task.shots), task.seed, base=task.text.base)
    fit_residuals([one], task.logit_scale, CPU)


def fitter(name: str) -> Callable[[FewShotTask], object]:
    """Return the function that fits a method with its defaults."""
    if name == "taskres":
        return fit_taskres
    method: Method = find_method(name).method
    return lambda task: method.fit(suited(task, method), method.options)


def suited(task: FewShotTask, method: Method) -> FewShotTask:
    """Return what a run would give the method: views and pre-projection features only if it asks for them."""
    views = None if method.views == "none" else task.views
    if method.reads != "features":
        return replace(task, views=views)
    plain = (one and Images(one.image_features, one.labels) for one in (task.train, task.val))
    train, val = plain
    return replace(task, train=train or task.train, val=val, views=views, projection=None)


def seconds(fit: Callable[[FewShotTask], object], task: FewShotTask) -> float:
    """Return the seconds of one fit."""
    started = perf_counter()
    fit(task)
    return perf_counter() - started


def compared(
    ours: Callable[[FewShotTask], object], plain: Callable[[FewShotTask], object], task: FewShotTask
) -> tuple[float, float]:
    """Return the seconds of our fit and of the plain loop, one right after the other."""
    return seconds(ours, task), seconds(plain, task)


def main() -> None:
    """Print the seconds of each method over all fits, their sum, and the ratios to plain loops."""
    parser = argparse.ArgumentParser(description="time every method at the size of Caltech101")
    parser.add_argument("--methods", default="all", help="names, separated by commas")
    parser.add_argument("--plain", action="store_true", help="time the plain loops as well")
    options = parser.parse_args()
    names = [name for name in expanded(options.methods.split(",")) if name != "auto"]
    tasks = {(shots, seed): task_of(shots, seed) for shots in SHOTS for seed in SEEDS}
    total = 0.0
    print(f"{'method':14} " + " ".join(f"{shots:>6} sh" for shots in SHOTS) + "      sum")
    for name in names:
        fit = fitter(name)
        times = {shots: sum(seconds(fit, tasks[shots, seed]) for seed in SEEDS) for shots in SHOTS}
        total += sum(times.values())
        cells = " ".join(f"{times[shots]:7.2f} s" for shots in SHOTS)
        print(f"{name:14} {cells} {sum(times.values()):7.1f} s", flush=True)
    print(f"{'all':14} {' ' * 45}{total:7.1f} s")
    for name in [name for name in names if name in PLAIN] if options.plain else ():
        ours, theirs = compared(fitter(name), PLAIN[name], tasks[16, 1])
        print(f"{name:14} plain loop {theirs:6.2f} s, ours {ours:6.2f} s, ratio {theirs / ours:5.2f}", flush=True)


if __name__ == "__main__":
    main()
