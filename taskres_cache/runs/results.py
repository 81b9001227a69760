"""The results of a fit from Python: its runs, a summary over seeds, and a table for notebooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any, overload

from taskres_cache.runs.run import Run
from taskres_cache.runs.summary import Summary, summarise

COLUMNS = ("method", "shots", "seeds", "zero-shot %", "val %", "test %", "std", "gain")


@dataclass(frozen=True)
class FitResults(Sequence[Run]):
    """The runs of a fit, in the order of splits and recipes.

    A sequence of `Run`; in a notebook it shows the summary over seeds.

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
        """Return one flat record per run: folder, then the metrics of `metrics.json`; `pandas.DataFrame` takes them."""
        return [{"folder": str(run.folder), **run.metrics.to_json()} for run in self.runs]

    def __repr__(self) -> str:
        lines = [", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, row, strict=True)) for row in self._rows()]
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
                str(row.shots),
                ", ".join(map(str, row.seeds)),
                f"{row.zero_shot_accuracy:.2f}",
                _percent(row.mean_val_accuracy),
                f"{row.mean_test_accuracy:.2f}",
                _percent(row.std_test_accuracy),
                f"{row.gain:+.2f}",
            )
            for row in self.summaries
        ]


def _percent(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"
