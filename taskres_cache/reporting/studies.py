"""The runs of a report, grouped into studies: one data set, checkpoint and half of the classes each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from taskres_cache.errors import CacheError, OptionError, RunError
from taskres_cache.reporting.analysis import Analysis, analyse
from taskres_cache.reporting.published_results import PublishedResults, published_results
from taskres_cache.runs.finding import find_runs
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.results import Summary, summarise
from taskres_cache.runs.run import Run, read_metrics


@dataclass(frozen=True)
class Study:
    """All runs of one data set, checkpoint and half of the classes.

    Parameters
    ----------
    dataset, backbone, pretrained, half : str
        What the runs have in common.
    runs : tuple of Run
        All runs, those of the regular base first.
    summaries : tuple of Summary
        Mean and deviation over seeds, per method and shot count.
    published : tuple of PublishedResults
        Published results for the data set and checkpoint.
    analysis : Analysis or None
        Test predictions of one method; None if the cache is not available.
    analysis_error : str
        Why there is no analysis.
    """

    dataset: str
    backbone: str
    pretrained: str
    half: str
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]
    published: tuple[PublishedResults, ...]
    analysis: Analysis | None
    analysis_error: str = ""

    @property
    def title(self) -> str:
        """The data set, and the half of its classes."""
        return self.dataset if self.half == "all" else f"{self.dataset}, {self.half} classes"

    @property
    def methods(self) -> dict[str, list[Summary]]:
        """Method -> its summaries, by shots."""
        found: dict[str, list[Summary]] = {}
        for summary in self.summaries:
            found.setdefault(summary.method, []).append(summary)
        return found


def gather_studies(paths: Sequence[Path], cache_dir: Path, device: torch.device) -> list[Study]:
    """Find runs and group them into studies.

    Parameters
    ----------
    paths : sequence of Path
        Run folders, or folders above several; a run found twice counts once.
    cache_dir : Path
        Folder of all caches, for runs whose cache has moved.
    device : torch.device
        Where test predictions are computed.

    Returns
    -------
    list of Study
        In the order in which they are found.

    Raises
    ------
    RunError
        There is no run, or one is damaged.
    OptionError
        Two runs of a study have the same method, shots and seed.
    """
    folders = list({folder.resolve(): folder for path in paths for folder in find_runs(path)}.values())
    groups: dict[tuple[str, ...], list[Run]] = {}
    for folder in folders:
        run = Run(folder, read_metrics(folder))
        groups.setdefault(_key(run.metrics), []).append(run)
    for runs in groups.values():
        _refuse_duplicates(runs)
    return [_study(runs, cache_dir, device) for runs in groups.values()]


def _key(metrics: Metrics) -> tuple[str, ...]:
    """Return what the runs of a study have in common."""
    return metrics.dataset, metrics.backbone, metrics.pretrained, metrics.weights_sha256, metrics.classes


def _refuse_duplicates(runs: Sequence[Run]) -> None:
    """Raise OptionError if a seed of a method would count twice, for example from two folders of runs."""
    seen: dict[tuple[str, int, int], Path] = {}
    for run in runs:
        fit = run.metrics.method, run.metrics.shots, run.metrics.seed
        if fit in seen:
            raise OptionError(f"{seen[fit]} and {run.folder} are the same fit; pass the folder of one of them")
        seen[fit] = run.folder


def _study(runs: Sequence[Run], cache_dir: Path, device: torch.device) -> Study:
    dataset, backbone, pretrained, _, half = _key(runs[0].metrics)
    runs = sorted(runs, key=lambda run: run.metrics.base != "regular")  # the paper's method first
    summaries = tuple(summarise(run.metrics for run in runs))
    published = tuple(published_results(dataset, backbone, pretrained)) if half == "all" else ()
    chosen, chosen_by = _chosen(summaries)
    fits = [run for run in runs if (run.metrics.method, run.metrics.shots) == (chosen.method, chosen.shots)]
    analysis, analysis_error = None, ""
    try:
        analysis = analyse(fits, chosen_by, cache_dir, device)
    except (CacheError, RunError) as error:
        analysis_error = str(error)
    return Study(dataset, backbone, pretrained, half, tuple(runs), summaries, published, analysis, analysis_error)


def _chosen(summaries: Sequence[Summary]) -> tuple[Summary, str]:
    """Return the summary to analyse, and why: at the most shots the best by validation accuracy, never by test."""
    most = max(summary.shots for summary in summaries)
    candidates = [summary for summary in summaries if summary.shots == most]
    if len(candidates) == 1:
        return candidates[0], "the only method at the most shots"
    if any(summary.mean_val_accuracy is None for summary in candidates):
        return candidates[0], "the first method, since validation accuracies are missing"
    best = max(candidates, key=lambda summary: summary.mean_val_accuracy or 0.0)
    return best, "the method with the best validation accuracy at the most shots"
