"""The results of a fit: its runs, summarised over seeds, with a table for notebooks."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from html import escape
from typing import Any, overload

from taskres_cache.caches.contents import DEFAULT_PROMPTS
from taskres_cache.datasets.sampling import shots_json, shots_text
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.run import Run
from taskres_cache.system.frames import frame_of
from taskres_cache.system.text import printable

COLUMNS = ("method", "shots", "seeds", "zero-shot %", "val %", "test %", "std", "gain")


@dataclass(frozen=True)
class Summary:
    """Accuracies of a method and shot count over seeds, in percent.

    Parameters
    ----------
    method : str
        Name of the method.
    shots : int
        Training images per class.
    seeds : tuple of int
        The seeds that were run.
    zero_shot_accuracy, mean_base_accuracy, mean_val_accuracy, mean_test_accuracy : float
        Means over seeds; None if no run has it, which the test accuracy never is.
    std_test_accuracy : float or None
        Standard deviation of a sample; None for one seed.
    mean_top5_accuracy, mean_calibration_error, mean_fit_seconds : float or None
        Means over seeds; None if all runs are of an earlier version that did not record them.
    base : str
        Kind of base, see `Recipe.base`.
    images_per_class : float or None
        Mean number of training images per class; None if all runs are of an earlier version.
    prompts : str
        The set of prompts; zero-shot is of the same set.
    """

    method: str
    shots: int
    seeds: tuple[int, ...]
    zero_shot_accuracy: float | None
    mean_base_accuracy: float | None
    mean_val_accuracy: float | None
    mean_test_accuracy: float
    std_test_accuracy: float | None
    mean_top5_accuracy: float | None = None
    mean_calibration_error: float | None = None
    mean_fit_seconds: float | None = None
    base: str = "regular"
    images_per_class: float | None = None
    prompts: str = DEFAULT_PROMPTS

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain values for JSON."""
        return {**asdict(self), "shots": shots_json(self.shots)}

    @property
    def gain(self) -> float | None:
        """Gain over zero-shot in percentage points; None without text."""
        return None if self.zero_shot_accuracy is None else self.mean_test_accuracy - self.zero_shot_accuracy


def summarise(all_metrics: Iterable[Metrics]) -> list[Summary]:
    """Return one summary per method and shot count: methods in the order of the runs, shots ascending."""
    groups: dict[tuple[str, int], list[Metrics]] = {}
    for metrics in all_metrics:
        groups.setdefault((metrics.method, metrics.shots), []).append(metrics)
    methods = list(dict.fromkeys(method for method, _ in groups))
    ascending = sorted(groups, key=lambda group: (methods.index(group[0]), group[1]))
    return [_summary(*group, groups[group]) for group in ascending]


def _summary(method: str, shots: int, runs: list[Metrics]) -> Summary:
    tests = [run.test_accuracy for run in runs]
    return Summary(
        method,
        shots,
        tuple(run.seed for run in runs),
        _mean(run.zero_shot_accuracy for run in runs),
        _mean(run.own_base_accuracy for run in runs),
        _mean(run.val_accuracy for run in runs),
        statistics.mean(tests),
        deviation(tests),
        _mean(run.top5_accuracy for run in runs),
        _mean(run.calibration_error for run in runs),
        _mean(run.seconds.fit for run in runs),
        runs[0].base,
        _mean(run.images_per_class for run in runs),
        runs[0].prompts,
    )


def _mean(numbers: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers that are not None; None if there are none."""
    known = [number for number in numbers if number is not None]
    return statistics.mean(known) if known else None


def deviation(accuracies: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample; None for a single value."""
    return statistics.stdev(accuracies) if len(accuracies) > 1 else None


@dataclass(frozen=True)
class FitResults(Sequence[Run]):
    """The runs of a fit, in the order of splits and recipes.

    A sequence of `Run`; a notebook shows it as a table of the means over seeds.

    Parameters
    ----------
    runs : tuple of Run
        One per split and recipe.
    """

    runs: tuple[Run, ...]

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> "FitResults": ...
    def __getitem__(self, index: int | slice) -> "Run | FitResults":
        return FitResults(self.runs[index]) if isinstance(index, slice) else self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """Mean and standard deviation over seeds, one summary per method and shot count."""
        return tuple(summarise(run.metrics for run in self.runs))

    def to_records(self) -> list[dict[str, Any]]:
        """Return one record per run, its folder and the content of `metrics.json`, as `pandas.DataFrame` takes them."""
        return [{"folder": str(run.folder), **run.metrics.to_json()} for run in self.runs]

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, one row per run; raises MissingExtraError if pandas is not installed."""
        records = self.to_records()
        columns = dict.fromkeys(name for record in records for name in record)
        return frame_of({name: [record.get(name) for record in records] for name in columns})

    def __repr__(self) -> str:
        lines = [
            printable(", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, row, strict=True)))
            for row in self._rows()
        ]
        return "\n".join([f"FitResults: {len(self)} runs", *lines])

    def _repr_html_(self) -> str:
        """Return the summary over seeds as an HTML table."""
        head = "".join(f"<th>{name}</th>" for name in COLUMNS)
        rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self._rows())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                row.method,
                shots_text(row.shots),
                ", ".join(map(str, row.seeds)),
                _percent(row.zero_shot_accuracy),
                _percent(row.mean_val_accuracy),
                f"{row.mean_test_accuracy:.2f}",
                _percent(row.std_test_accuracy),
                "-" if row.gain is None else f"{row.gain:+.2f}",
            )
            for row in self.summaries
        ]


def _percent(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"
