"""The paper's benchmark: extract, fit and evaluate every data set.

Nothing is done twice. Caches are extended by what is missing; a run is reused if it was fitted by the same recipe on
exactly the same input numbers.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from taskres_cache.benchmark.methods import method_runs
from taskres_cache.caches.contents import SplitName, cache_path
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import ENTRIES, PAPER_SHOTS, Entry
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import TaskresError, UnknownNameError
from taskres_cache.extraction.extract import ExtractOptions, extract
from taskres_cache.runs.evaluation import evaluate_run
from taskres_cache.runs.fitting.study import finished_runs, fit_each, recipe_of
from taskres_cache.runs.results import Summary, deviation, summarise
from taskres_cache.runs.run import Run, read_classifier
from taskres_cache.system.progress import Progress

SHIFT_SOURCE = "imagenet"  # its classifiers are tested on the shifted data sets


@dataclass(frozen=True)
class Folders:
    """Where things are.

    Parameters
    ----------
    root : Path
        Folder of all data sets.
    cache_dir : Path
        Folder of all caches.
    out : Path
        Folder of all runs.
    """

    root: Path
    cache_dir: Path
    out: Path


@dataclass(frozen=True)
class DatasetResult:
    """Result of a data set with training images.

    Parameters
    ----------
    name : str
        Name of the data set.
    summaries : tuple of Summary
        One per shot count.
    runs : tuple of Run
        All runs.
    reused : int
        How many of them existed before.
    notes : tuple of str
        Notes of the extraction for the user.
    others : tuple of Summary
        Of further methods, one per method and shot count.
    """

    name: str
    summaries: tuple[Summary, ...]
    runs: tuple[Run, ...]
    reused: int
    notes: tuple[str, ...]
    others: tuple[Summary, ...] = ()


@dataclass(frozen=True)
class ShiftResult:
    """Classifiers of ImageNet on a shifted test set.

    Parameters
    ----------
    name : str
        Name of the shifted data set.
    shots : int
        Shots of the classifiers.
    seeds : tuple of int
        Seeds of the classifiers.
    zero_shot_accuracy, mean_test_accuracy : float
        In percent.
    std_test_accuracy : float or None
        Standard deviation over seeds; None for one seed.
    """

    name: str
    shots: int
    seeds: tuple[int, ...]
    zero_shot_accuracy: float
    mean_test_accuracy: float
    std_test_accuracy: float | None

    @property
    def gain(self) -> float:
        """Gain over zero-shot in percentage points."""
        return self.mean_test_accuracy - self.zero_shot_accuracy


@dataclass(frozen=True)
class LeftOut:
    """A data set without a result.

    Parameters
    ----------
    name : str
        Name of the data set.
    reason : str
        Why there is no result.
    failed : bool
        True if it failed, False if it is not installed or there is nothing to test.
    """

    name: str
    reason: str
    failed: bool


Outcome = DatasetResult | ShiftResult | LeftOut


def benchmark_entries(names: Sequence[str] | None) -> list[Entry]:
    """Return the data sets of a benchmark, those without training images last.

    Parameters
    ----------
    names : sequence of str or None
        Names of data sets; None or empty for the paper's data sets.

    Raises
    ------
    UnknownNameError
        A name is unknown.
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
    folders: Folders,
    progress: Progress,
    methods: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Extract, fit and evaluate data sets one after the other; a failure does not stop the others.

    Parameters
    ----------
    entries : sequence of Entry
        The data sets, see `benchmark_entries`.
    backbone : callable
        Returns the frozen encoder; called when the first data set is found.
    options : ExtractOptions
        Shots, seeds and how to extract.
    folders : Folders
        Root, caches and runs.
    progress : Progress
        Called while images are encoded.
    methods : sequence of str, optional
        Names of methods to fit next to the task residual.

    Yields
    ------
    Outcome
        The result of each data set.

    Raises
    ------
    OptionError
        The backbone or the device is unknown.
    WeightsError
        The checkpoint could not be loaded.
    """
    source: tuple[Run, ...] = ()
    for entry in entries:
        missing = entry.missing(folders.root)
        if missing:
            yield LeftOut(entry.name, f"missing below {folders.root}: {', '.join(missing)}", failed=False)
            continue
        encoder = backbone()  # outside of try: an error would be the same for every data set
        try:
            source = source or (_source_runs(encoder, options, folders) if entry.test_only else ())
            if entry.test_only and not source:
                reason = f"needs runs of {SHIFT_SOURCE}, and there are none; add {SHIFT_SOURCE} to the data sets"
                yield LeftOut(entry.name, reason, failed=False)
                continue
            cache, notes = _extract(entry, encoder, options, folders, progress)
            if entry.test_only:
                yield _shift_result(entry.name, source, cache, encoder.device)
                continue
            result = _dataset_result(entry.name, cache, notes, options, folders, encoder.device)
            yield _with_methods(result, cache, methods, options, folders, encoder.device)
        except TaskresError as error:
            yield LeftOut(entry.name, str(error), failed=True)


def _source_runs(backbone: Backbone, options: ExtractOptions, folders: Folders) -> tuple[Run, ...]:
    """Return the existing runs of ImageNet, of this benchmark or an earlier one."""
    path = cache_path(folders.cache_dir, backbone.name, backbone.pretrained, SHIFT_SOURCE)
    if not path.is_file():
        return ()
    cache = FeatureCache(path)
    splits = [split for split in _splits(options) if split in cache.splits]
    return tuple(finished_runs(cache, splits, recipe_of(cache), folders.out).values())


def _splits(options: ExtractOptions) -> list[SplitName]:
    return [(shots, seed) for shots in options.shots or PAPER_SHOTS for seed in options.seeds]


def _extract(
    entry: Entry, backbone: Backbone, options: ExtractOptions, folders: Folders, progress: Progress
) -> tuple[FeatureCache, tuple[str, ...]]:
    """Return the cache of a data set, extended by what is missing, and notes for the user."""
    path = cache_path(folders.cache_dir, backbone.name, backbone.pretrained, entry.name)
    done = extract(entry.read(folders.root), backbone, options, path, progress)
    return FeatureCache(done.path), done.notes


def _dataset_result(
    name: str,
    cache: FeatureCache,
    notes: tuple[str, ...],
    options: ExtractOptions,
    folders: Folders,
    device: torch.device,
) -> DatasetResult:
    """Return the result of a data set; missing runs are fitted."""
    splits = _splits(options)
    recipe = recipe_of(cache)
    found = finished_runs(cache, splits, recipe, folders.out)
    missing = [split for split in splits if split not in found]
    fitted = fit_each(cache, missing, [recipe], device, folders.out) if missing else ()
    done: dict[SplitName, Run] = found | dict(zip(missing, fitted, strict=True))
    runs = tuple(done[split] for split in splits)
    return DatasetResult(name, tuple(summarise(run.metrics for run in runs)), runs, len(found), notes)


def _with_methods(
    result: DatasetResult,
    cache: FeatureCache,
    names: Sequence[str],
    options: ExtractOptions,
    folders: Folders,
    device: torch.device,
) -> DatasetResult:
    """Return a result with the runs of further methods added."""
    further = method_runs(cache, _splits(options), names, device, folders.out)
    return replace(
        result,
        runs=result.runs + further.runs,
        reused=result.reused + further.reused,
        notes=result.notes + further.notes,
        others=tuple(summarise(run.metrics for run in further.runs)),
    )


def _shift_result(name: str, runs: Sequence[Run], cache: FeatureCache, device: torch.device) -> ShiftResult:
    """Return the accuracy of the classifiers with the most shots on a shifted test set."""
    shots = max(run.metrics.shots for run in runs)
    chosen = [run for run in runs if run.metrics.shots == shots]
    results = [evaluate_run(read_classifier(run.folder), cache, device) for run in chosen]
    tests = [result.test_accuracy for result in results]
    zero_shot = results[0].zero_shot_accuracy
    assert zero_shot is not None  # extracted caches have text
    return ShiftResult(
        name=name,
        shots=shots,
        seeds=tuple(run.metrics.seed for run in chosen),
        zero_shot_accuracy=zero_shot,
        mean_test_accuracy=statistics.mean(tests),
        std_test_accuracy=deviation(tests),
    )
