"""The runs of a report, grouped into studies: one data set, checkpoint and half of the classes each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from taskres_cache.errors import CacheError, OptionError, RunError
from taskres_cache.reporting.closer_look import CloserLook, look_closer
from taskres_cache.reporting.published_results import Figures, published_figures
from taskres_cache.runs.finding import find_runs
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.results import Summary, summarise
from taskres_cache.runs.run import Run, read_metrics


@dataclass(frozen=True)
class Study:
    """All runs of one data set, checkpoint and half of the classes.

    Parameters
    ----------
    dataset, backbone, pretrained, half : what the runs have in common.
    runs, summaries : one by one, and summed up over seeds.
    figures : what others have published of it.
    closer : None where the cache is not there to look closer.
    unseen : why it is not.
    """

    dataset: str
    backbone: str
    pretrained: str
    half: str
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]
    figures: tuple[Figures, ...]
    closer: CloserLook | None
    unseen: str = ""

    @property
    def title(self) -> str:
        """The data set, and the half of it."""
        return self.dataset if self.half == "all" else f"{self.dataset}, {self.half} classes"

    @property
    def methods(self) -> dict[str, list[Summary]]:
        """Method -> its summaries, shots rising."""
        found: dict[str, list[Summary]] = {}
        for summary in self.summaries:
            found.setdefault(summary.method, []).append(summary)
        return found


def gather_studies(paths: Sequence[Path], cache_dir: Path, device: torch.device) -> list[Study]:
    """Return the runs at or below some paths as studies, in the order in which they are found.

    Parameters
    ----------
    paths : run folders, or folders above several; a run that is found twice counts once.
    cache_dir : where caches live, for runs whose own is no longer where it was.
    device : to ask the classifiers on.

    Raises
    ------
    RunError : no run, or one that is not intact.
    OptionError : two runs of the same method, shots and seed in one study, which would count as two seeds.
    """
    folders = list({folder.resolve(): folder for path in paths for folder in find_runs(path)}.values())
    groups: dict[tuple[str, ...], list[Run]] = {}
    for folder in folders:
        run = Run(folder, read_metrics(folder))
        groups.setdefault(_subject(run.metrics), []).append(run)
    for runs in groups.values():
        _refuse_doubles(runs)
    return [_study(runs, cache_dir, device) for runs in groups.values()]


def _subject(metrics: Metrics) -> tuple[str, ...]:
    """Return what the runs of a study have in common."""
    return metrics.dataset, metrics.backbone, metrics.pretrained, metrics.weights_sha256, metrics.classes


def _refuse_doubles(runs: Sequence[Run]) -> None:
    """Raise OptionError where a seed of a method would count twice, as from two folders of runs."""
    seen: dict[tuple[str, int, int], Path] = {}
    for run in runs:
        fit = run.metrics.method, run.metrics.shots, run.metrics.seed
        if fit in seen:
            raise OptionError(f"{seen[fit]} and {run.folder} are the same fit; pass the folder of one of them")
        seen[fit] = run.folder


def _study(runs: Sequence[Run], cache_dir: Path, device: torch.device) -> Study:
    dataset, backbone, pretrained, _, half = _subject(runs[0].metrics)
    runs = sorted(runs, key=lambda run: run.metrics.base != "regular")  # the paper's first
    summaries = tuple(summarise(run.metrics for run in runs))
    figures = tuple(published_figures(dataset, backbone, pretrained)) if half == "all" else ()
    chosen, chosen_by = _most_promising(summaries)
    fits = [run for run in runs if (run.metrics.method, run.metrics.shots) == (chosen.method, chosen.shots)]
    closer, unseen = None, ""
    try:
        closer = look_closer(fits, chosen_by, cache_dir, device)
    except (CacheError, RunError) as error:
        unseen = str(error)
    return Study(dataset, backbone, pretrained, half, tuple(runs), summaries, figures, closer, unseen)


def _most_promising(summaries: Sequence[Summary]) -> tuple[Summary, str]:
    """Return the summary to look closer at, and why: of the most shots the best by val; test has no say in it."""
    most = max(summary.shots for summary in summaries)
    candidates = [summary for summary in summaries if summary.shots == most]
    if len(candidates) == 1:
        return candidates[0], "the method with the most shots"
    if any(summary.mean_val_accuracy is None for summary in candidates):
        return candidates[0], "the first of the methods"
    return max(candidates, key=lambda summary: summary.mean_val_accuracy or 0.0), "the best by val accuracy"
