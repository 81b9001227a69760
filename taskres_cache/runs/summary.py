"""Runs summed up over seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from taskres_cache.runs.metrics import Metrics


@dataclass(frozen=True)
class Summary:
    """Test accuracy of a method and shot count over seeds: mean, and deviation (of a sample; None for one seed).

    The last three are means as well; None where runs of an earlier version do not tell.
    """

    method: str
    shots: int
    seeds: tuple[int, ...]
    zero_shot_accuracy: float
    mean_base_accuracy: float
    mean_val_accuracy: float | None
    mean_test_accuracy: float
    std_test_accuracy: float | None
    mean_top5_accuracy: float | None = None
    mean_calibration_error: float | None = None
    mean_fit_seconds: float | None = None
    base: str = "regular"

    @property
    def gain(self) -> float:
        """Over zero-shot, in points."""
        return self.mean_test_accuracy - self.zero_shot_accuracy


def summarise(all_metrics: Iterable[Metrics]) -> list[Summary]:
    """Return one summary for each method and shot count, methods as they come, shots rising."""
    groups: dict[tuple[str, int], list[Metrics]] = {}
    for metrics in all_metrics:
        groups.setdefault((metrics.method, metrics.shots), []).append(metrics)
    methods = list(dict.fromkeys(method for method, _ in groups))
    rising = sorted(groups, key=lambda group: (methods.index(group[0]), group[1]))
    return [_summary(*group, groups[group]) for group in rising]


def _summary(method: str, shots: int, runs: list[Metrics]) -> Summary:
    tests = [run.test_accuracy for run in runs]
    return Summary(
        method,
        shots,
        tuple(run.seed for run in runs),
        statistics.mean(run.zero_shot_accuracy for run in runs),
        statistics.mean(run.own_base_accuracy for run in runs),
        _mean(run.val_accuracy for run in runs),
        statistics.mean(tests),
        deviation(tests),
        _mean(run.top5_accuracy for run in runs),
        _mean(run.calibration_error for run in runs),
        _mean(run.seconds.fit for run in runs),
        runs[0].base,
    )


def _mean(numbers: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers that are there."""
    known = [number for number in numbers if number is not None]
    return statistics.mean(known) if known else None


def deviation(accuracies: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample; None for a single number."""
    return statistics.stdev(accuracies) if len(accuracies) > 1 else None
