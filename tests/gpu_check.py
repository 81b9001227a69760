"""`make check-gpu`: whether a GPU gives the CPU's fits, and how near to its limit it runs. Ten minutes on one H100.

Every part prints a table; the exit status is 1 if a goal is missed. Features are random: only numbers and times matter.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.foreign.importing import ImportOptions, import_contents
from taskres_cache.cli.console import print_table
from taskres_cache.datasets import PAPER_SHOTS
from taskres_cache.datasets.images import ImageFolder
from taskres_cache.encoders.loading import load_backbone
from taskres_cache.methods.task_residual import epoch
from taskres_cache.methods.task_residual.loop import try_residuals, tune_projections
from taskres_cache.methods.task_residual.task import Fit, FitTask, Task
from taskres_cache.methods.training_sets import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.tables import Table
from taskres_cache.runs.fitting.study import fit, recipe_of
from taskres_cache.system.accelerator import wait_for
from tests.conftest import save_image

CPU, SCALE, DIM = torch.device("cpu"), 100.0, 1024
COLUMNS = ("what", "measured", "goal", "met")
# After a few epochs of Adam single coordinates with tiny gradients differ in sign, so directions are compared.
COSINES = {"fp32": 0.9999, "tf32": 0.9995, "bf16": 0.999}  # bf16 on a CPU: 0.99989
# classes and test images of the paper's data sets
SIZES = {
    "imagenet": (1000, 50_000), "caltech101": (100, 2465), "oxford_pets": (37, 3669), "stanford_cars": (196, 8041),
    "oxford_flowers": (102, 2463), "food101": (101, 30_300), "fgvc_aircraft": (100, 3333), "sun397": (397, 19_850),
    "dtd": (47, 1692), "eurosat": (10, 8100), "ucf101": (101, 3783),
}  # fmt: skip

Row = tuple[str, str, str, str]


def row(what: str, measured: float, goal: float, unit: str = "", at_most: bool = True) -> Row:
    """Return a row of a table; a NaN meets no goal."""
    met = measured <= goal if at_most else measured >= goal
    return (
        what,
        f"{measured:.6g}{unit}",
        f"{'at most' if at_most else 'at least'} {goal:g}{unit}",
        "yes" if met else "NO",
    )


def problem(classes: int, dim: int, shots: int, seed: int) -> tuple[TrainingSet, np.ndarray]:
    """Return a training set around one direction per class, and a base near the directions."""
    rng = np.random.default_rng(seed)
    labels, centres = np.tile(np.arange(classes), shots), rng.normal(size=(classes, dim))
    features = 10 * (0.4 * centres[labels] + rng.normal(size=(len(labels), dim)))
    return TrainingSet.from_features(features.astype(np.float32), labels), (0.3 * centres).astype(np.float32)


@contextmanager
def without_graphs() -> Iterator[None]:
    """Take every step by itself."""
    recorded = epoch.Epoch._recorded
    epoch.Epoch._recorded = lambda *_: {}  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        epoch.Epoch._recorded = recorded  # type: ignore[method-assign]


def arrays_of(fits: Sequence[Fit]) -> list[np.ndarray]:
    """Return what fits have trained, as far as it is not zero (a NaN is not), and their losses."""
    trained = [array for one in fits for array in (one.residual, one.image_residual) if array is not None]
    return [array for array in (*trained, *(np.array(one.losses) for one in fits)) if array.any()]


def gap(fits: Sequence[Fit], others: Sequence[Fit]) -> float:
    """Return the largest difference, relative to the largest value of its array."""
    pairs = zip(arrays_of(fits), arrays_of(others), strict=True)
    # not Python's max, which passes over a NaN that is not the first
    return float(np.max([np.abs(one - other).max() / np.abs(other).max() for one, other in pairs]))


def cosine(fits: Sequence[Fit], others: Sequence[Fit]) -> float:
    """Return the smallest cosine between arrays."""
    pairs = zip(arrays_of(fits), arrays_of(others), strict=True)
    return float(np.min([(one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other) for one, other in pairs]))


def variants(precision: str, stacked: Sequence[int]) -> Iterator[list[FitTask]]:
    """Yield the tasks of every variant of the loop: one fit or several, on a shared base or one each."""
    sets = [problem(20, 64, 32, seed) for seed in range(3)]
    features = np.random.default_rng(9).normal(size=(80, 64)).astype(np.float32)
    val = ValidationSet(features, np.arange(80) % 20)
    options = (("text", "image", "both"), ("fixed", "learn"), (False, True), stacked, (None, 2))
    for kind, rule, own, count, patience in product(*options):
        recipe = Recipe(residual=kind, alpha_rule=rule, patience=patience, precision=precision)
        yield [
            FitTask(
                sets[number][0],
                recipe.changed(lr=2e-3 * (1 + number % 2), weight_decay=(5e-4, 0.0, 5e-4)[number]),
                8,
                number,
                val,
                base=sets[number if own else 0][1],
            )
            for number in range(count)
        ]
    one_by_one = Recipe(batch_size=1, precision=precision)  # 640 steps: two graphs per epoch
    yield [FitTask(sets[0][0], one_by_one, 2, 1, val, base=sets[0][1])]


def parity(device: torch.device, stacked: Sequence[int]) -> Table:
    """Compare all variants with the CPU in float32, and recorded epochs with steps one by one."""
    rows = []
    for precision in ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32", "bf16"):
        recorded, cosines, gaps = [], [], []
        for tasks in variants(precision, stacked):
            ours = try_residuals(tasks, SCALE, device)
            with without_graphs():
                recorded.append(gap(ours, try_residuals(tasks, SCALE, device)))
            if tasks[0].recipe.patience is not None:
                continue  # rounding may choose another epoch
            exact = [replace(task, recipe=task.recipe.changed(precision="fp32")) for task in tasks]
            on_cpu = try_residuals(exact, SCALE, CPU)
            cosines.append(cosine(ours, on_cpu))
            gaps.append(gap(ours, on_cpu))
        rows.append(row(f"{precision}: recorded epochs against steps, relative gap", float(np.max(recorded)), 1e-5))
        rows.append(
            row(f"{precision}: against the CPU, cosine", float(np.min(cosines)), COSINES[precision], at_most=False)
        )
        rows.append((f"{precision}: against the CPU, relative gap", f"{np.max(gaps):.3g}", "", ""))
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(20, 48)).astype(np.float32), rng.normal(size=(48, 64)).astype(np.float32) / 7
    tasks = [Task(problem(20, 64, 32, seed)[0], Recipe(), 8, seed) for seed in range(3)]
    ours, on_cpu = (tune_projections(tasks, *inputs, SCALE, where)[2].projection for where in (device, CPU))
    difference = float(np.abs(ours - on_cpu).max() / np.abs(on_cpu).max())
    rows.append(row("projection against the CPU, relative gap", difference, 1e-2))
    return Table(f"parity of {device}", COLUMNS, tuple(rows))


def whole_fits(device: torch.device, classes: int, epochs: int) -> Table:
    """Time fits of 16 shots at ImageNet's size; `seconds` of a fit must be the time of the clock on the wall."""
    training, base = problem(classes, DIM, 16, 0)
    rows = []
    for precision, count in product(("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32",), (1, 3)):
        tasks = [FitTask(training, Recipe(precision=precision, lr=2e-4), epochs, n, base=base) for n in range(count)]
        try_residuals([replace(task, epochs=1) for task in tasks], SCALE, device)  # libraries initialise
        wait_for(device)
        started = perf_counter()
        fits = try_residuals(tasks, SCALE, device)
        wait_for(device)
        wall = perf_counter() - started
        steps = epochs * max(1, 16 * classes // 256)
        rows.append(row(f"{precision}, {count} stacked: seconds per fit", wall / count, 1.0, " s"))
        rows.append((f"{precision}, {count} stacked: per step and fit", f"{1e6 * wall / steps / count:.1f} us", "", ""))
        missing = 100 * abs(1 - sum(one.seconds for one in fits) / wall)
        rows.append(row(f"{precision}, {count} stacked: `seconds` against the wall", missing, 20.0, " %"))
    return Table(f"{epochs} epochs of {classes} classes, 16 shots, on {device}", COLUMNS, tuple(rows))


def random_cache(name: str, classes: int, test: int, folder: Path) -> Path:
    """Write a cache of random features with a pool of 16 train and, but for ImageNet, 4 val images per class."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, DIM)).astype(np.float32)
    arrays = {"text_features": 0.3 * centres, "classnames": np.array([f"class {label}" for label in range(classes)])}
    for part, count in (("train", 16 * classes), ("val", 0 if name == "imagenet" else 4 * classes), ("test", test)):
        if count:
            labels = np.arange(count) % classes
            arrays[f"{part}_labels"] = labels
            noise = rng.standard_normal((count, DIM), dtype=np.float32)
            arrays[f"{part}_features"] = 10 * (0.4 * centres[labels] + noise)
    return import_contents(arrays, ImportOptions(name, shots=PAPER_SHOTS), folder).path


def papers_grid(device: torch.device, names: Sequence[str], folder: Path, epochs: int | None) -> Table:
    """Time the fits of all shots and seeds of some data sets, with evaluation and writing."""
    rows, total = [], 0.0
    for name in names:
        cache = FeatureCache(random_cache(name, *SIZES[name], folder / "cache"))
        started = perf_counter()
        runs = fit(cache, None, [recipe_of(cache, epochs=epochs)], device, folder / "runs")
        took = perf_counter() - started
        total += took
        rows.append((f"{name}, {len(runs)} fits", f"{took:.2f} s", "", ""))
    rows.append(row("all", total, 20.0, " s"))
    return Table(f"the paper's shots and seeds on {device}, {DIM} dimensions", COLUMNS, tuple(rows))


def two_ranks(device: torch.device, images: int, folder: Path) -> Table:
    """Compare the cache of two processes on one card with that of one."""
    for number in range(images):
        part = "train" if number < 8 else "test"
        save_image(folder / "noise" / part / ("even" if number % 2 else "odd") / f"{number}.png", number, size=(64, 48))
    taskres, torchrun = (str(Path(sys.executable).with_name(name)) for name in ("taskres", "torchrun"))
    weights = ["--backbone", "glyph-clip", "--pretrained", "bundled", "--device", str(device), "--precision", "fp32"]
    work = ["extract", str(folder / "noise"), *weights, "--shots", "1", "--seeds", "1"]
    launch = [torchrun, "--standalone", "--nproc-per-node", "2", "--no-python", taskres]
    features = []
    for name, command in (("one", [taskres]), ("two", launch)):
        subprocess.run([*command, *work, "--cache-dir", str(folder / name)], check=True, capture_output=True)
        cache = FeatureCache(folder / name / "glyph-clip-bundled" / "noise.h5")
        features.append(cache.image_features(np.arange(len(cache.labels))))
    difference = float(np.abs(features[0] - features[1]).max())
    return Table(f"two processes on {device}", COLUMNS, (row("largest difference to one process", difference, 0.0),))


def precision_of_features(device: torch.device, folder: Path) -> Table:
    """Compare features in fp32 with the CPU's: TF32 in convolutions would show."""
    save_image(folder / "a.png", 1)
    image = ImageFolder(folder).read("a.png")
    found = []
    for where in (str(device), "cpu"):
        backbone = load_backbone("glyph-clip", "bundled", where, "fp32")
        pixels = np.stack([np.asarray(backbone.framing(image))] * 8)
        found.append(backbone.encode_images(backbone.on_device(pixels)))
    difference = float(np.abs(found[0] - found[1]).max() / np.abs(found[1]).max())
    return Table("features in fp32", COLUMNS, (row("relative gap to the CPU", difference, 1e-4),))


def tables(device: torch.device, quick: bool, folder: Path) -> Iterator[Table]:
    """Yield the tables, one part after the other."""
    yield parity(device, (3,) if quick else (1, 3))
    if device.type == "cuda" and torch.cuda.device_count() > 1:  # epochs must be recorded on the device of the fits
        other = (torch.cuda.current_device() + 1) % torch.cuda.device_count()
        yield parity(torch.device("cuda", other), (3,))
    yield precision_of_features(device, folder)
    yield two_ranks(device, 40 if quick else 1400, folder)
    yield whole_fits(device, 100 if quick else 1000, 20 if quick else 200)
    yield papers_grid(device, ("eurosat",) if quick else tuple(SIZES), folder, 2 if quick else None)


def main() -> int:
    """Print the tables; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try this script")
    options = parser.parse_args()
    device, missed = torch.device(options.device), 0
    with tempfile.TemporaryDirectory() as folder:
        for table in tables(device, options.quick, Path(folder)):
            print_table(table)
            missed += sum(cells[-1] == "NO" for cells in table.rows)
    if not options.quick:
        bench = Path(__file__).with_name("bench_extract.py")  # fails below the goal of extract, 0.9 of bare encoding
        command = [sys.executable, str(bench), "--device", options.device, "--rounds", "1"]
        missed += subprocess.run(command, check=False).returncode != 0
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
