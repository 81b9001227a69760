"""Tables of the methods of a benchmark: one per data set, and averages over data sets."""

import statistics
from collections.abc import Sequence

from taskres_cache.benchmark.pipeline import DatasetResult, Outcome
from taskres_cache.reporting.tables import Table, in_shots, percent, with_deviation
from taskres_cache.runs.results import Summary


def method_tables(outcomes: Sequence[Outcome], title: str) -> list[Table]:
    """Return a table of methods and shots for each data set with further methods, and one of averages.

    A method's average is over all data sets; a method that is missing on one of them, or has other seeds there, has
    none: averages over unlike runs are not comparable.
    """
    results = [outcome for outcome in outcomes if isinstance(outcome, DatasetResult) and outcome.others]
    tables = [_dataset_table(result, title) for result in results]
    return [*tables, _average_table(results, title)] if len(results) > 1 else tables


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


def _dataset_table(result: DatasetResult, title: str) -> Table:
    """Return mean and deviation over seeds for each method of a data set; zero-shot comes first."""
    shots = [row.shots for row in result.summaries]
    zero_shot = ("zero-shot", *(percent(row.zero_shot_accuracy) for row in result.summaries))
    rows = [
        (method, *(_cell(by_shots.get(count)) for count in shots))
        for method, by_shots in _by_method([result])[result.name].items()
    ]
    heading = f"{title}, {result.name}: test accuracy of each method in %, mean and standard deviation over seeds"
    return Table(heading, ("method", *map(in_shots, shots)), (zero_shot, *rows))


def _average_table(results: Sequence[DatasetResult], title: str) -> Table:
    """Return the average over data sets for each method that has the same shots and seeds on all of them."""
    shots, named = [row.shots for row in results[0].summaries], _by_method(results)
    seeds = {row.shots: row.seeds for row in results[0].summaries}
    methods = dict.fromkeys(method for by_method in named.values() for method in by_method)
    rows = []
    for method in methods:
        cells = []
        for count in shots:
            found = [named[result.name].get(method, {}).get(count) for result in results]
            alike = [row for row in found if row is not None and row.seeds == seeds[count]]
            complete = len(alike) == len(results)
            cells.append(percent(statistics.mean(row.mean_test_accuracy for row in alike)) if complete else "-")
        rows.append((method, *cells))
    heading = f"{title}: average over {len(results)} data sets in %"
    return Table(heading, ("method", *map(in_shots, shots)), tuple(rows))


def _by_method(results: Sequence[DatasetResult]) -> dict[str, dict[str, dict[int, Summary]]]:
    """Return the summaries by data set, method and shots; the data set's own task residual is called taskres."""
    named: dict[str, dict[str, dict[int, Summary]]] = {}
    for result in results:
        by_method = named.setdefault(result.name, {"taskres": {row.shots: row for row in result.summaries}})
        for row in result.others:
            by_method.setdefault(row.method, {})[row.shots] = row
    return named


def _cell(row: Summary | None) -> str:
    return "-" if row is None else with_deviation(row.mean_test_accuracy, row.std_test_accuracy)


def _record(name: str, row: Summary) -> tuple[str, ...]:
    seeds = " ".join(map(str, row.seeds))
    numbers = (row.zero_shot_accuracy, row.mean_test_accuracy, row.std_test_accuracy, row.gain, row.mean_fit_seconds)
    return (name, row.method, str(row.shots), seeds, *("" if number is None else f"{number:.4f}" for number in numbers))
