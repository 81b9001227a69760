"""Tables of the methods of a benchmark: one per data set, and averages over data sets."""

from collections.abc import Sequence

from taskres_cache.benchmark.pipeline import DatasetResult, Outcome
from taskres_cache.datasets.sampling import shots_text
from taskres_cache.reporting.comparison.grid import grid_of, grids_over_datasets
from taskres_cache.reporting.comparison.tables import comparison_tables
from taskres_cache.reporting.studies import Study
from taskres_cache.reporting.tables import Table
from taskres_cache.runs.results import Summary


def method_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """Return the comparison of methods for each data set with further methods, and over all of these data sets.

    Accuracy, gain over zero-shot and paired differences to TaskRes are over the same data sets and seeds for all
    methods; a method that misses one of them has a dash.
    """
    studies = [_study(one) for one in outcomes if isinstance(one, DatasetResult) and one.others]
    grids = [*map(grid_of, studies), *grids_over_datasets(studies)]
    return [table for grid in grids for table in comparison_tables(grid)]


def method_records(outcomes: Sequence[Outcome]) -> Table:
    """Return all numbers of all methods in one table; other programs read it as CSV."""
    columns = ("dataset", "method", "shots", "seeds", "zero_shot", "test_mean", "test_std", "gain", "fit_seconds")
    rows = tuple(
        _record(outcome.name, row)
        for outcome in outcomes
        if isinstance(outcome, DatasetResult)
        for row in (*outcome.summaries, *outcome.others)
    )
    return Table("methods", columns, rows, left=2)


def _study(result: DatasetResult) -> Study:
    """Return the runs of a data set as a study, without an analysis."""
    metrics = result.runs[0].metrics
    summaries = (*result.summaries, *result.others)
    return Study(result.name, metrics.backbone, metrics.pretrained, metrics.classes, result.runs, summaries, (), None)


def _record(name: str, row: Summary) -> tuple[str, ...]:
    seeds = " ".join(map(str, row.seeds))
    numbers = (row.zero_shot_accuracy, row.mean_test_accuracy, row.std_test_accuracy, row.gain, row.mean_fit_seconds)
    return (
        name,
        row.method,
        shots_text(row.shots),
        seeds,
        *("" if number is None else f"{number:.4f}" for number in numbers),
    )
