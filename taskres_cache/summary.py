"""Runs summed up over seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """Test accuracy of a method and shot count over seeds: mean, and deviation (of a sample; None for one seed)."""

    method: str
    shots: int
    seeds: tuple[int, ...]
    zero_shot_accuracy: float
    mean_base_accuracy: float
    mean_val_accuracy: float | None
    mean_test_accuracy: float
    std_test_accuracy: float | None


def summarise(all_metrics: Iterable[dict[str, Any]]) -> list[Summary]:
    """Return one summary for each method and shot count, methods as they come, shots rising."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for metrics in all_metrics:
        groups.setdefault((metrics["method"], metrics["shots"]), []).append(metrics)
    methods = list(dict.fromkeys(method for method, _ in groups))
    rising = sorted(groups, key=lambda group: (methods.index(group[0]), group[1]))
    return [_summary(*group, groups[group]) for group in rising]


def _summary(method: str, shots: int, runs: list[dict[str, Any]]) -> Summary:
    tests = [run["test_accuracy"] for run in runs]
    vals = [run["val_accuracy"] for run in runs if run["val_accuracy"] is not None]
    return Summary(
        method,
        shots,
        tuple(run["seed"] for run in runs),
        statistics.mean(run["zero_shot_accuracy"] for run in runs),
        statistics.mean(run.get("base_accuracy", run["zero_shot_accuracy"]) for run in runs),  # once there was one base
        statistics.mean(vals) if vals else None,
        statistics.mean(tests),
        deviation(tests),
    )


def deviation(accuracies: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample; None for a single number."""
    return statistics.stdev(accuracies) if len(accuracies) > 1 else None
