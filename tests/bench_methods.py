"""`make bench-methods`: the time of every method on the paper's shots and seeds, at the size of Caltech101.

Random features of 100 classes, 1,024 dimensions and four augmented views per image; 1, 2, 4, 8 and 16 shots, three
seeds. Plain loops of some methods, written with autograd or scikit-learn as research code has them, run right before
the same method's own fit, at 16 shots; the ratio is plain to ours.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from taskres_cache.methods.few_shot import FewShotTask, Images
from taskres_cache.methods.method import Method
from taskres_cache.methods.names import expanded
from taskres_cache.methods.registry import find_method
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe
from tests.methods.tasks import random_task

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


def plain_zs_lp(task: FewShotTask) -> None:
    """Fit ZS-LP with autograd and torch.optim.SGD, on a pool of all views."""
    pool = torch.from_numpy(task.augmented.image_features).flatten(0, 1)
    labels = torch.from_numpy(task.train.labels).repeat(len(task.augmented))
    weights = torch.nn.Parameter(torch.from_numpy(task.text.base).clone())
    optimiser = torch.optim.SGD([weights], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    shuffler = torch.Generator().manual_seed(task.seed)
    for _ in range(300):
        order = torch.randperm(len(pool), generator=shuffler)
        for rows in order.split(256)[: max(1, len(task.train) // 256)]:
            optimiser.zero_grad()
            features, classifier = (torch.nn.functional.normalize(one, dim=1) for one in (pool[rows], weights))
            torch.nn.functional.cross_entropy(task.logit_scale * features @ classifier.T, labels[rows]).backward()
            optimiser.step()
        schedule.step()


def plain_linear_probe(task: FewShotTask) -> None:
    """Fit as many logistic regressions as CoOp's search with scikit-learn, at values of C over the same range."""
    for exponent in np.linspace(-6, 6, 23):
        LogisticRegression(C=10.0**exponent, max_iter=1000).fit(task.train.image_features, task.train.labels)


def plain_rla(task: FewShotTask) -> None:
    """Fit a regularised linear adapter with autograd and torch.optim.Adam, one view per step."""
    views = torch.from_numpy(task.augmented.image_features)
    labels, text = torch.from_numpy(task.train.labels), torch.from_numpy(task.text.ensemble)
    eye = torch.eye(views.shape[2])
    adapter = torch.nn.Parameter(eye.clone())
    optimiser = torch.optim.Adam([adapter], lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for step in range(300):
        optimiser.zero_grad()
        features = torch.nn.functional.normalize(views[(step + 1) % len(views)] @ adapter, dim=1)
        loss = torch.nn.functional.cross_entropy(task.logit_scale * features @ text.T, labels)
        (loss + (adapter - eye).square().sum() / task.shots).backward()
        optimiser.step()
        schedule.step()


PLAIN = {"zs-lp": plain_zs_lp, "linear-probe": plain_linear_probe, "rla": plain_rla}


def seconds(fit: Callable[[FewShotTask], object], task: FewShotTask) -> float:
    """Return the seconds of one fit."""
    started = perf_counter()
    fit(task)
    return perf_counter() - started


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
    for name, plain in PLAIN.items() if options.plain else ():
        task = tasks[16, 1]
        theirs, ours = seconds(plain, task), seconds(fitter(name), task)
        print(f"{name}: plain loop {theirs:.2f} s, ours {ours:.2f} s, ratio {theirs / ours:.2f}", flush=True)


if __name__ == "__main__":
    main()
