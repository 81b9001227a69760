"""`make bench-extract`: the time of stage one compared with the time of encoding and decoding alone.

Everything is measured in one run: measurements of `extract` alternate with measurements of its parts, so that other
load on the machine slows both. Images are crops of two photographs in scikit-learn, saved as JPEG files of about
500 x 375. The weights of RN50 are random, which does not affect the time.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import mean
from time import perf_counter

import numpy as np
import open_clip
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.cli.console import print_table
from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.datasets.images import ImageFolder
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.encoding import lane_count, lanes
from taskres_cache.encoders.loading import load_backbone, untrained_model
from taskres_cache.extraction.extract import Extraction, ExtractOptions, extract
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.tables import Table, percent
from taskres_cache.runs.fitting.study import fit_each, recipe_of
from taskres_cache.system.devices import available_cores

SIZE = (500, 375)
PICTURES = 256  # different files; the others are hard links to them
SECONDS_OF_A_TURN = 6.0
OPTIONS = ExtractOptions(shots=(1,), seeds=(1,))
SHARE_OF_BARE = 0.9  # of the rate of the bare encoder, on a GPU
OF_BARE = f">= {SHARE_OF_BARE:.2f} of bare"
COLUMNS = ("what", "images/s", "CPU ms per image", "ratio", "goal")


@dataclass(frozen=True)
class Measured:
    """One measurement: images, seconds of wall time, and seconds of CPU time."""

    images: int
    wall: float
    processor: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.wall

    @property
    def cost(self) -> float:
        """CPU seconds per image."""
        return self.processor / self.images


def processor_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(work: Callable[[], int]) -> Measured:
    """Return the measurement of some work, which returns its number of images."""
    wall, processor = perf_counter(), processor_seconds()
    return Measured(work(), perf_counter() - wall, processor_seconds() - processor)


def for_a_while(step: Callable[[], int]) -> Callable[[], int]:
    """Return work that repeats a step for some seconds; one warm-up step runs first."""
    step()

    def work() -> int:
        ends, images = perf_counter() + SECONDS_OF_A_TURN, 0
        while perf_counter() < ends:
            images += step()
        return images

    return work


def write_photos(folder: Path, count: int) -> None:
    """Write JPEG files of two classes: four train images, the others test images."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    written: list[Path] = []
    for number in range(count):
        file = folder / ("train" if number < 4 else "test") / ("even" if number % 2 == 0 else "odd") / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number >= PICTURES:
            os.link(written[number % PICTURES], file)
            continue
        picture, shrunk = pictures[number % 2], rng.uniform(0.8, 1.0)
        width, height = int(shrunk * picture.width), int(shrunk * picture.height)
        left, top = rng.integers(0, picture.width - width + 1), rng.integers(0, picture.height - height + 1)
        picture.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.LANCZOS).save(
            file, quality=92
        )
        written.append(file)


class Photos(TorchDataset[torch.Tensor]):
    """Image files as a plain PyTorch loop reads them."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.rglob("*.jpg"))
        self.preprocess = open_clip.image_transform(224, is_train=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.preprocess(Image.open(self.files[number]))


def plain_loop(model: torch.nn.Module, photos: Photos, device: torch.device, **loading: int) -> Callable[[], int]:
    """Return a plain loop in float32; its DataLoader has the default options except for `loading`."""
    batches = cycle(DataLoader(photos, **loading))

    def step() -> int:
        with torch.no_grad():
            return len(model.encode_image(next(batches).to(device)).cpu())

    return step


def bare_encoding(backbone: Backbone, pixels: np.ndarray) -> Callable[[], int]:
    """Return the encoder alone on given pixels, with one batch per lane."""
    on_device = backbone.on_device(pixels)

    def step() -> int:
        with lanes(backbone) as threads:
            done = threads.map(lambda _: len(backbone.encode_images(on_device)), range(2 * lane_count(backbone)))
            return sum(done)

    return step


def decoding(source: ImageFolder, paths: list[str], backbone: Backbone) -> Callable[[], int]:
    """Return decoding and framing alone, in one process."""
    rounds = cycle(paths)

    def step() -> int:
        return len([np.asarray(backbone.framing(source.read(next(rounds)))) for _ in range(16)])

    return step


def extraction(dataset: Dataset, backbone: Backbone, path: Path, images: int) -> tuple[Extraction, Measured]:
    """Return the result and the measurement of extracting some images."""
    part = replace(dataset, test=dataset.test[:images])
    done: list[Extraction] = []

    def work() -> int:
        done.append(extract(part, backbone, OPTIONS, path))
        return done[0].encoded

    took = measured(work)
    return done[0], took


def whole_command(folder: Path, checkpoint: Path, cache_dir: Path, device: str) -> Measured:
    """Return the measurement of the whole command `taskres extract`, including the start of Python."""
    weights = ["--backbone", "RN50", "--pretrained", str(checkpoint), "--device", device]
    command = [str(Path(sys.executable).with_name("taskres")), "extract", str(folder), *weights]
    command += ["--shots", "1", "--seeds", "1", "--cache-dir", str(cache_dir)]
    images = len(list(folder.rglob("*.jpg")))

    def work() -> int:
        subprocess.run(command, check=True, capture_output=True)
        return images

    return measured(work)


def row(what: str, took: Measured, ratio: float | None = None, goal: str = "") -> tuple[str, ...]:
    """Return a row of the table."""
    shown = "" if ratio is None else f"{ratio:.2f}"
    return what, f"{took.rate:.2f}", f"{1000 * took.cost:.1f}", shown, goal


def goals_missed(table: Table) -> int:
    """Return how many rows are below their share of bare encoding, the goal on a GPU; a NaN is."""
    shares = [float(ratio) for *_, ratio, goal in table.rows if goal == OF_BARE]
    return sum(not share >= SHARE_OF_BARE for share in shares)


def average(turns: list[Measured]) -> Measured:
    """Return several measurements as one."""
    return Measured(
        *(sum(parts) for parts in zip(*((one.images, one.wall, one.processor) for one in turns), strict=True))
    )


def speed(place: Path, images: int, rounds: int, device: str) -> Iterator[Table]:
    """Yield the measurements, and where the time of the last extraction went."""
    write_photos(place / "photos", images)
    checkpoint = place / "random.pt"
    torch.save(untrained_model("RN50", seed=0)[0].state_dict(), checkpoint)
    backbone = load_backbone("RN50", str(checkpoint), device)
    dataset = load_dataset(str(place / "photos"), Path())
    assert isinstance(dataset.source, ImageFolder)
    paths = [item.path for item in dataset.test[:PICTURES]]
    size = backbone.batch_that_fits(256, lane_count(backbone))
    pixels = np.stack([np.asarray(backbone.framing(dataset.source.read(path))) for path in paths[:size]])
    plain = untrained_model("RN50", seed=0)[0].eval().to(backbone.device)
    photos, on_gpu = Photos(place / "photos"), backbone.device.type != "cpu"
    loops = {
        "1": plain_loop(plain, photos, backbone.device),
        "32": plain_loop(plain, photos, backbone.device, batch_size=32),
    }
    parts = {
        "bare": for_a_while(bare_encoding(backbone, pixels)),
        "decode": for_a_while(decoding(dataset.source, paths, backbone)),
        **{name: for_a_while(loop) for name, loop in loops.items()},
    }
    turns: dict[str, list[Measured]] = {name: [measured(work)] for name, work in parts.items()}
    turns["extract"] = []
    for number in range(rounds):
        done, took = extraction(dataset, backbone, place / f"round{number}.h5", images // 4)
        turns["extract"].append(took)
        for name, work in parts.items():
            turns[name].append(measured(work))
    command = whole_command(place / "photos", checkpoint, place / "cache", device)
    for name in ("bare", "decode"):
        turns[name].append(measured(parts[name]))

    took = {name: average(several) for name, several in turns.items()}
    limit = (took["bare"].cost + took["decode"].cost) / available_cores()  # seconds per image
    best_rate = took["bare"].rate if on_gpu else 1 / limit
    goals = (OF_BARE, OF_BARE) if on_gpu else ("<= 1.15 of both parts", "<= 1.15 of both parts")
    ratio = (lambda one: one.rate / best_rate) if on_gpu else (lambda one: best_rate / one.rate)
    gain = took["extract"].rate / took["1"].rate
    yield Table(
        f"RN50, random weights, {backbone.precision} on {backbone.device}, {available_cores()} cores, 500 x 375 JPEG",
        COLUMNS,
        (
            row("plain loop, DataLoader's defaults (one image per batch), fp32", took["1"], 1.0),
            row("plain loop, 32 images per batch, fp32", took["32"], took["32"].rate / took["1"].rate),
            row(f"bare encoding, {backbone.precision}", took["bare"]),
            row("decoding alone, one process", took["decode"]),
            row(f"extract, {images // 4} images", took["extract"], ratio(took["extract"]), goals[0]),
            row(f"whole command taskres extract, {images} images", command, ratio(command), goals[1]),
            row("extract compared with the plain loop", took["extract"], gain, ">= 3"),
            row("extract compared with the plain loop of 32", took["extract"], took["extract"].rate / took["32"].rate),
        ),
        left=1,
    )
    shares = tuple((part, f"{share:.1f}") for part, share in done.seconds.shares().items())
    yield Table("where the time of extract goes", ("part", "%"), shares, left=1)
    yield agreement(backbone, pixels)


def agreement(backbone: Backbone, pixels: np.ndarray) -> Table:
    """Return the cosines of each precision's features with those of float32, image by image."""
    on_device = backbone.on_device(pixels)
    exact = replace(backbone, precision="fp32").encode_images(on_device)
    rows = []
    for precision in ("bf16", "fp16"):
        rough = replace(backbone, precision=precision).encode_images(on_device)
        cosines = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
        rows.append((precision, f"{cosines.min():.6f}", f"{cosines.mean():.6f}", ">= 0.999 each"))
    title = f"cosine of RN50's features with those of fp32, {len(pixels)} images"
    return Table(title, ("precision", "minimum", "mean", "goal"), tuple(rows), left=1)


def accuracy(place: Path, device: str) -> Table:
    """Return the accuracy for each precision of the features, on the bundled digits with trained weights."""
    rows = []
    for precision in ("fp32", "bf16"):
        backbone = load_backbone("glyph-clip", "bundled", device, precision)
        path = place / precision / "digits.h5"
        extract(load_dataset("digits", Path()), backbone, ExtractOptions(), path)
        cache = FeatureCache(path)
        splits = [(shots, seed) for shots in (1, 4, 16) for seed in (1, 2, 3)]
        recipe: Recipe = recipe_of(cache)
        runs = [run.metrics for run in fit_each(cache, splits, [recipe], backbone.device, place / precision)]
        tests = [mean(run.test_accuracy for run in runs if run.shots == shots) for shots in (1, 4, 16)]
        rows.append((precision, percent(runs[0].zero_shot_accuracy), *map(percent, tests)))
    title = "test accuracy on digits by precision of glyph-clip's features, mean over three seeds, %"
    return Table(title, ("precision", "zero-shot", "1 shot", "4 shots", "16 shots"), tuple(rows), left=1)


def main() -> int:
    """Measure and print the tables; return 1 if extraction is slower than its goal on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=3000, help="per whole command; a round extracts a quarter")
    parser.add_argument("--rounds", type=int, default=2)
    arguments, missed = parser.parse_args(), 0
    with tempfile.TemporaryDirectory() as folder:
        for table in speed(Path(folder), arguments.images, arguments.rounds, arguments.device):
            print_table(table)
            missed += goals_missed(table)
        print_table(accuracy(Path(folder), arguments.device))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
