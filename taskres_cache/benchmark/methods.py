"""Further methods of a benchmark: fitted next to the task residual on every data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.methods.choice import MethodChoice
from taskres_cache.runs.fitting.choices import choices_for, suited
from taskres_cache.runs.fitting.method_study import finished_method_runs, fit_methods
from taskres_cache.runs.run import Run


@dataclass(frozen=True)
class MethodRuns:
    """The runs of further methods on a data set.

    Parameters
    ----------
    runs : tuple of Run
        All runs, method by method.
    reused : int
        How many of them existed before.
    notes : tuple of str
        Methods that the cache does not suit, with the reason.
    """

    runs: tuple[Run, ...] = ()
    reused: int = 0
    notes: tuple[str, ...] = ()


def method_runs(
    cache: FeatureCache, splits: Sequence[SplitName], names: Sequence[str], device: torch.device, out: Path
) -> MethodRuns:
    """Return the runs of methods on a data set; missing ones are fitted.

    Parameters
    ----------
    cache : FeatureCache
        The cache of the data set.
    splits : sequence of (int, int)
        Few-shot splits as (shots, seed).
    names : sequence of str
        Names of methods; the task residual is left out.
    device : torch.device
        Where to compute.
    out : Path
        Folder of all runs.

    Raises
    ------
    OptionError
        A method is unknown.
    FitError
        A method failed.
    """
    choices, notes = suited(cache, choices_for(cache, names))
    done = [_runs_of(cache, splits, choice, device, out) for choice in choices]
    return MethodRuns(tuple(run for runs, _ in done for run in runs), sum(reused for _, reused in done), tuple(notes))


def _runs_of(
    cache: FeatureCache, splits: Sequence[SplitName], choice: MethodChoice, device: torch.device, out: Path
) -> tuple[list[Run], int]:
    """Return the run of each split, and how many of them existed."""
    found = finished_method_runs(cache, splits, choice, out)
    missing = [split for split in splits if split not in found]
    fitted = fit_methods(cache, missing, [choice], device, out) if missing else ()
    done = found | dict(zip(missing, fitted, strict=True))
    return [done[split] for split in splits], len(found)
