"""What the fits of one cache come down to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskres_cache.caches.contents import SplitName
from taskres_cache.reporting.conclusions.standings import Standing, standings
from taskres_cache.reporting.conclusions.verdict import spoken_of, verdicts
from taskres_cache.runs.results import summarise
from taskres_cache.runs.run import Run
from taskres_cache.runs.scores import ImageHits


@dataclass(frozen=True)
class Conclusion:
    """What fits come down to.

    Parameters
    ----------
    standings : tuple of Standing
        All classifiers on the same test images.
    sentences : tuple of str
        What was gained, for a reader in a hurry; a warning starts with "warning: ".
    """

    standings: tuple[Standing, ...]
    sentences: tuple[str, ...]


def conclude(runs: Sequence[Run], logistic: Mapping[SplitName, ImageHits] | None = None) -> Conclusion:
    """Return what runs that were just fitted come down to.

    Parameters
    ----------
    runs : sequence of Run
        At least one; all of one cache.
    logistic : mapping of (int, int) to ImageHits, optional
        Logistic regression by shots and seed.
    """
    found = standings(runs, logistic)
    summaries = summarise(run.metrics for run in runs)
    most = max(summary.shots for summary in summaries)
    val = {summary.method: summary.mean_val_accuracy for summary in summaries if summary.shots == most}
    return Conclusion(tuple(found), tuple(verdicts(found, spoken_of(val))))
