"""The paper's benchmark in one go: extract, fit and evaluate every data set that is there, then the tables.

Nothing is done twice: caches are extended by what they lack, and a run counts as done when it was fitted by the same
recipe on the very same numbers.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from taskres_cache.caches.contents import SplitName, cache_path
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import ENTRIES, Entry
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import TaskresError, UnknownNameError
from taskres_cache.extraction.extract import ExtractOptions, extract
from taskres_cache.runs.evaluation import evaluate_run
from taskres_cache.runs.results import Summary, deviation, summarise
from taskres_cache.runs.run import Run, read_classifier
from taskres_cache.runs.study import finished_runs, fit_each, recipe_of
from taskres_cache.system.progress import Progress

SOURCE_OF_SHIFTED = "imagenet"  # what the shifted data sets test classifiers of


@dataclass(frozen=True)
class Places:
    """Where data sets are, and where caches and runs go."""

    root: Path
    cache_dir: Path
    out: Path


@dataclass(frozen=True)
class Measured:
    """What came of a data set that was trained on: a summary a shot count, and how many runs were there already."""

    name: str
    summaries: tuple[Summary, ...]
    runs: tuple[Run, ...]
    already: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Shifted:
    """Classifiers of ImageNet on a shifted test set: accuracies in percent, mean and deviation over seeds."""

    name: str
    shots: int
    seeds: tuple[int, ...]
    zero_shot_accuracy: float
    mean_test_accuracy: float
    std_test_accuracy: float | None

    @property
    def gain(self) -> float:
        """Over zero-shot, in points."""
        return self.mean_test_accuracy - self.zero_shot_accuracy


@dataclass(frozen=True)
class LeftOut:
    """A data set that was left out, and why; `failed` when it is there but something went wrong."""

    name: str
    reason: str
    failed: bool


Outcome = Measured | Shifted | LeftOut


def benchmark_entries(names: Sequence[str] | None) -> list[Entry]:
    """Return the data sets of a benchmark: those named, else all of the paper's; what is tested only comes last.

    Raises
    ------
    UnknownNameError : a name that the registry does not have.
    """
    unknown = next((name for name in names or () if name not in ENTRIES), None)
    if unknown is not None:
        raise UnknownNameError("data set", unknown, ENTRIES, "pass names that `taskres datasets` lists")
    chosen = (
        [ENTRIES[name] for name in dict.fromkeys(names)]
        if names
        else [entry for entry in ENTRIES.values() if entry.counts]
    )
    return sorted(chosen, key=lambda entry: entry.test_only)


def run_benchmark(
    entries: Sequence[Entry],
    backbone: Callable[[], Backbone],
    options: ExtractOptions,
    places: Places,
    progress: Progress,
) -> Iterator[Outcome]:
    """Yield what came of each data set, one after the other; one that fails keeps none of the others from its turn.

    Parameters
    ----------
    entries : see `benchmark_entries`.
    backbone : the frozen encoder, loaded when the first data set is found.
    options : shots, seeds and how to extract.
    places : root, caches, runs.
    progress : told of what is encoded.

    Raises
    ------
    OptionError, WeightsError : no such encoder here.
    """
    source: tuple[Run, ...] = ()
    for entry in entries:
        lacking = entry.missing(places.root)
        if lacking:
            yield LeftOut(entry.name, f"{places.root} lacks {', '.join(lacking)}", failed=False)
            continue
        encoder = backbone()  # what is wrong with the weights is wrong for every data set, and ends the benchmark
        try:
            source = source or (_runs_at_hand(encoder, options, places) if entry.test_only else ())
            if entry.test_only and not source:
                reason = f"it tests classifiers of {SOURCE_OF_SHIFTED}, of which there are none"
                yield LeftOut(entry.name, reason, failed=False)
                continue
            cache, notes = _extracted(entry, encoder, options, places, progress)
            if entry.test_only:
                yield _measure_shifted(entry.name, source, cache, encoder.device)
                continue
            yield _measure(entry.name, cache, notes, options, places, encoder.device)
        except TaskresError as error:
            yield LeftOut(entry.name, str(error), failed=True)


def _runs_at_hand(backbone: Backbone, options: ExtractOptions, places: Places) -> tuple[Run, ...]:
    """Return the runs of ImageNet that this benchmark or an earlier one left."""
    path = cache_path(places.cache_dir, backbone.name, backbone.pretrained, SOURCE_OF_SHIFTED)
    if not path.is_file():
        return ()
    cache = FeatureCache(path)
    splits = [split for split in _splits(options) if split in cache.splits]
    return tuple(finished_runs(cache, splits, recipe_of(cache), places.out).values())


def _splits(options: ExtractOptions) -> list[SplitName]:
    return [(shots, seed) for shots in options.shots for seed in options.seeds]


def _extracted(
    entry: Entry, backbone: Backbone, options: ExtractOptions, places: Places, progress: Progress
) -> tuple[FeatureCache, tuple[str, ...]]:
    """Return the cache of a data set, made or extended where something lacks, and what a user should be told."""
    path = cache_path(places.cache_dir, backbone.name, backbone.pretrained, entry.name)
    done = extract(entry.read(places.root), backbone, options, path, progress)
    return FeatureCache(done.path), done.notes


def _measure(
    name: str,
    cache: FeatureCache,
    notes: tuple[str, ...],
    options: ExtractOptions,
    places: Places,
    device: torch.device,
) -> Measured:
    """Return every run of a data set, fitted where it is not there."""
    splits = _splits(options)
    recipe = recipe_of(cache)
    found = finished_runs(cache, splits, recipe, places.out)
    missing = [split for split in splits if split not in found]
    fitted = fit_each(cache, missing, [recipe], device, places.out) if missing else ()
    done: dict[SplitName, Run] = found | dict(zip(missing, fitted, strict=True))
    runs = tuple(done[split] for split in splits)
    return Measured(name, tuple(summarise(run.metrics for run in runs)), runs, len(found), notes)


def _measure_shifted(name: str, runs: Sequence[Run], cache: FeatureCache, device: torch.device) -> Shifted:
    """Return how the classifiers of the largest shot count do on a shifted test set."""
    shots = max(run.metrics.shots for run in runs)
    chosen = [run for run in runs if run.metrics.shots == shots]
    results = [evaluate_run(read_classifier(run.folder), cache, device) for run in chosen]
    tests = [result.test_accuracy for result in results]
    return Shifted(
        name=name,
        shots=shots,
        seeds=tuple(run.metrics.seed for run in chosen),
        zero_shot_accuracy=results[0].zero_shot_accuracy,
        mean_test_accuracy=statistics.mean(tests),
        std_test_accuracy=deviation(tests),
    )
