"""`make bench-fit`: the time of a step of stage two, compared with the two matrix products that it needs.

All functions in a row of the table are timed in turn in one process, round after round. A ratio is the median over
rounds of the ratio within a round, so that other load on the machine slows both sides equally; the ratio of the fastest
rounds is in brackets.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, TensorDataset

from taskres_cache.caches.foreign.importing import ImportOptions, import_contents
from taskres_cache.cli.console import print_table
from taskres_cache.datasets import PAPER_SHOTS
from taskres_cache.methods.task_residual import capture
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.step import ResidualStep
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.tables import Table
from taskres_cache.system.accelerator import wait_for

SCALE = 100.0
ROUNDS = 15
SECONDS_PER_TURN = 0.15
STEPS_ON_GPU = 16  # that a turn takes on a GPU: recorded ones as one graph, as in an epoch


@dataclass(frozen=True)
class Problem:
    """Random features of a data set's shape, around one direction per class and a shared one, as CLIP's are."""

    name: str
    classes: int
    dim: int
    shots: int

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return features (N, D), labels (N,) and base (C, D)."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(self.classes).repeat(self.shots)
        centres = torch.randn(self.classes, self.dim, generator=generator)
        shared = 1.5 * torch.randn(1, self.dim, generator=generator)
        features = 10 * (shared + 0.4 * centres[labels] + torch.randn(len(labels), self.dim, generator=generator))
        noise = torch.randn(self.classes, self.dim, generator=generator)
        return features.to(device), labels.to(device), (0.3 * (shared + 0.3 * centres + 0.5 * noise)).to(device)


PROBLEMS = (
    Problem("imagenet, 16 shots", 1000, 1024, 16),
    Problem("caltech101, 16 shots", 100, 1024, 16),
    Problem("digits, 16 shots", 10, 64, 16),
)

Turn = Callable[[int], object]


def two_products(problem: Problem, device: torch.device) -> Turn:
    """Return the two products of a step alone, on the same shapes, with fixed outputs."""
    features, _, base = problem.tensors(device)
    images = normalize(features[:256], dim=-1)
    errors = torch.rand(len(images), problem.classes, device=device)
    logits, gradient = torch.empty_like(errors), torch.empty_like(base)

    def turn(_: int) -> None:
        torch.mm(images, base.T, out=logits)
        torch.mm(errors.T, images, out=gradient)

    return as_in_an_epoch(turn, device)


def our_step(problem: Problem, device: torch.device, precision: str = "fp32") -> Turn:
    """Return one step of this library."""
    features, labels, base = problem.tensors(device)
    directions = normalize(features, dim=-1)
    if precision == "bf16":
        directions = directions.bfloat16()
    batch = min(256, len(labels))
    order = torch.randperm(len(labels), device=device)[: len(labels) // batch * batch].view(1, -1, batch)
    likelihoods = torch.empty(*order.shape, 1, device=device)
    batches = list(zip(order.unbind(1), labels[order][..., None].unbind(1), likelihoods.unbind(1), strict=True))
    step = ResidualStep(directions, features.norm(dim=-1), base, SCALE, [Recipe(precision=precision)], batch)
    step.set_rates([1e-3])
    return as_in_an_epoch(lambda number: step(*batches[number % len(batches)]), device)


def plain_step(problem: Problem, device: torch.device) -> Turn:
    """Return one step with autograd and torch.optim.Adam, with rows selected by index."""
    features, labels, base = problem.tensors(device)
    batch = min(256, len(labels))
    order = torch.randperm(len(labels), device=device)[: len(labels) // batch * batch].view(-1, batch)
    residual = torch.nn.Parameter(torch.zeros_like(base))
    optimiser = torch.optim.Adam([residual], lr=1e-3, weight_decay=5e-4)
    return repeated(
        lambda number: _plain(features, labels, base, residual, optimiser, order[number % len(order)]), device
    )


def loader_step(problem: Problem, device: torch.device) -> Turn:
    """Return the same with a DataLoader, and the loss and accuracy of each batch, as in research code."""
    features, labels, base = problem.tensors(device)
    residual = torch.nn.Parameter(torch.zeros_like(base))
    optimiser = torch.optim.Adam([residual], lr=1e-3, weight_decay=5e-4)
    loader = DataLoader(TensorDataset(features, labels), batch_size=min(256, len(labels)), shuffle=True, drop_last=True)
    batches = iter(loader)

    def turn(_: int) -> None:
        nonlocal batches
        try:
            images, targets = next(batches)
        except StopIteration:
            batches = iter(loader)
            images, targets = next(batches)
        logits = _plain(images, targets, base, residual, optimiser, slice(None))
        (logits.argmax(dim=-1) == targets).float().mean().item()

    return repeated(turn, device)


def steps_per_turn(device: torch.device) -> int:
    """Return how many steps a turn takes."""
    return STEPS_ON_GPU if capture.can_record(device) else 1


def repeated(step: Turn, device: torch.device) -> Turn:
    """Return a turn of several steps."""
    steps = steps_per_turn(device)

    def turn(number: int) -> None:
        for ahead in range(steps):
            step(number * steps + ahead)

    return turn


@dataclass(frozen=True)
class Recorded:
    """A recorded turn. A graph does not keep the tensors it works on, so the turn is kept for as long as the graph."""

    turn: Turn
    replay: capture.Recorded

    def __call__(self, number: int) -> None:
        """Take the turn."""
        self.replay()


def as_in_an_epoch(step: Turn, device: torch.device) -> Turn:
    """Return a turn of several steps, on a GPU recorded as a graph: else the time of launches would be measured."""
    turn = repeated(step, device)
    if not capture.can_record(device):
        return turn
    capture.warm_up(lambda: turn(0), device)
    return Recorded(turn, capture.recorded(lambda: turn(0), device))


def _plain(
    features: torch.Tensor,
    labels: torch.Tensor,
    base: torch.Tensor,
    residual: torch.nn.Parameter,
    optimiser: torch.optim.Optimizer,
    rows: torch.Tensor | slice,
) -> torch.Tensor:
    images = features[rows]
    images = images / images.norm(dim=-1, keepdim=True)
    weights = base + 0.5 * residual
    weights = weights / weights.norm(dim=-1, keepdim=True)
    logits = SCALE * images @ weights.t()
    loss = cross_entropy(logits, labels[rows])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    loss.item()
    return logits


def measured(turns: dict[str, Turn], device: torch.device) -> dict[str, list[float]]:
    """Return the milliseconds of a step of each turn in every round; in a round all turns run for the same time."""
    counts = {name: _count(turn, device) for name, turn in turns.items()}
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(ROUNDS):
        for name, turn in turns.items():
            steps = counts[name] * steps_per_turn(device)
            times[name].append(_timed(turn, counts[name], device) / steps * 1e3)
    return times


def _count(turn: Turn, device: torch.device) -> int:
    """Return the number of turns that fill `SECONDS_PER_TURN`, after a warm-up."""
    for number in range(5):
        turn(number)
    return max(3, int(SECONDS_PER_TURN / (_timed(turn, 5, device) / 5)))


def _timed(turn: Turn, count: int, device: torch.device) -> float:
    wait_for(device)
    started = perf_counter()
    for number in range(count):
        turn(number)
    wait_for(device)
    return perf_counter() - started


def step_table(device: torch.device) -> Table:
    """Return the time of a step at each size, in milliseconds and as ratios."""
    rows = []
    for problem in PROBLEMS:
        turns = {
            "products": two_products(problem, device),
            "step": our_step(problem, device),
            "bf16": our_step(problem, device, "bf16"),
            "plain": plain_step(problem, device),
            "loader": loader_step(problem, device),
        }
        times = measured(turns, device)
        ratios = [_ratios(times, *pair) for pair in (("step", "products"), ("plain", "step"), ("loader", "step"))]
        rows.append((problem.name, *(f"{median(times[name]):.3f}" for name in turns), *ratios))
    columns = ("size", "two products ms", "step ms", "bf16 step ms", "plain ms", "plain + loader ms")
    ratios_named = ("step / products", "plain / step", "plain + loader / step")
    return Table(f"one step on {device}", (*columns, *ratios_named), tuple(rows))


def _ratios(times: dict[str, list[float]], name: str, other: str) -> str:
    """Return the median over rounds of a ratio, and the ratio of the fastest rounds."""
    within = median(a / b for a, b in zip(times[name], times[other], strict=True))
    return f"{within:.2f} ({min(times[name]) / min(times[other]):.2f})"


def fit_table(device: torch.device, epochs: int) -> Table:
    """Return the time and peak memory of whole fits, each in its own process."""
    rows = []
    for problem in PROBLEMS:
        command = [sys.executable, __file__, "--device", str(device), "--fit", problem.name, "--epochs", str(epochs)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        seconds, peak, bound = map(float, printed)
        done = _epochs(problem, device, epochs)
        rows.append(
            (problem.name, f"{seconds / done * 1e3:.1f}", str(done), f"{seconds:.2f}", f"{peak:.0f}", f"{bound:.0f}")
        )
    columns = ("size", "epoch ms", "epochs", "fit s", "peak MiB", "allowed MiB")
    return Table(f"whole fits on {device}", columns, tuple(rows))


def print_fit(problem: Problem, device: torch.device, epochs: int) -> None:
    """Print the seconds of a fit, its peak memory, on a CPU beyond the start of the process, and the allowed, in MiB.

    Allowed are twice the training features and eight classifiers; the features are in memory once before the fit.
    """
    features, labels, base = (tensor.numpy() for tensor in problem.tensors(torch.device("cpu")))
    small, training = (TrainingSet.from_features(features[:count], labels[:count]) for count in (256, len(labels)))
    del features
    fit_residuals([FitTask(small, Recipe(), 1, 1, base=base)], SCALE, device)  # libraries allocate on first use
    before = _start_of_peak(training.directions.nbytes, device)
    task = FitTask(training, Recipe(), _epochs(problem, device, epochs), 1, base=base)
    (fit,) = fit_residuals([task], SCALE, device)
    allowed = (2 * training.directions.nbytes + 8 * base.nbytes) / 2**20
    print(fit.seconds, _peak(device) - before, allowed)


def _start_of_peak(in_memory: int, device: torch.device) -> float:
    """Reset the peak, and return the MiB in use apart from the training features, which a CPU has in memory already."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _mebibytes("VmRSS") - in_memory / 2**20


def _peak(device: torch.device) -> float:
    """Return the peak in MiB: of the device's memory on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _mebibytes("VmHWM")


def _epochs(problem: Problem, device: torch.device, epochs: int) -> int:
    """Return the paper's 200 epochs, or `epochs` where those would take minutes."""
    return epochs if problem.classes == 1000 and device.type == "cpu" else 200


def _mebibytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def grid_table(device: torch.device) -> Table:
    """Return the time of 5 shot counts and 3 seeds in one call of the command, and in 15 calls."""
    taskres = Path(sys.executable).with_name("taskres")
    with tempfile.TemporaryDirectory() as folder:
        write_random_cache(Path(folder))
        fit = [str(taskres), "fit", "random", "--device", str(device)]

        def seconds(*options: str) -> float:
            started = perf_counter()
            subprocess.run([*fit, *options], cwd=folder, check=True, capture_output=True)
            return perf_counter() - started

        together = seconds("--shots", "1,2,4,8,16", "--seeds", "1,2,3")
        alone = [seconds("--shots", str(k), "--seeds", str(seed)) for k in (1, 2, 4, 8, 16) for seed in (1, 2, 3)]
    row = ("caltech101", f"{together:.1f}", f"{sum(alone):.1f}", f"{together / sum(alone):.2f}")
    return Table("5 shots x 3 seeds from the command line", ("size", "one call s", "15 calls s", "ratio"), (row,))


def write_random_cache(folder: Path) -> Path:
    """Write a cache of random features in the size of Caltech101, with other images in each part; return its path."""
    problem = Problem("caltech101", 100, 1024, 20)
    features, labels, base = (tensor.numpy() for tensor in problem.tensors(torch.device("cpu")))
    noise = np.random.default_rng(0).normal(size=(2, *features.shape)).astype(np.float32)
    parts = {"train_features": features, "val_features": features + noise[0], "test_features": features + noise[1]}
    named = {f"{part}_labels": labels for part in ("train", "val", "test")}
    names = np.array([f"class {number}" for number in range(problem.classes)])
    arrays = {**parts, **named, "text_features": base, "classnames": names}
    return import_contents(arrays, ImportOptions("random", shots=PAPER_SHOTS), folder / "cache").path


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=5, help="of the whole fit at ImageNet's size on a CPU")
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.fit:
        (problem,) = [known for known in PROBLEMS if known.name == options.fit]
        print_fit(problem, device, options.epochs)
        return
    print_table(step_table(device))
    print_table(fit_table(device, options.epochs))
    print_table(grid_table(device))


if __name__ == "__main__":
    main()
