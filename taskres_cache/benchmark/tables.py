"""Tables of a benchmark over data sets, as Markdown and CSV."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from taskres_cache.benchmark.method_tables import method_records, method_tables
from taskres_cache.benchmark.pipeline import SHIFT_SOURCE, DatasetResult, LeftOut, Outcome, ShiftResult
from taskres_cache.datasets.sampling import shots_text
from taskres_cache.reporting.published.compared import Measured, compared, measured
from taskres_cache.reporting.published.tables import compared_table, sources_table
from taskres_cache.reporting.tables import Table, in_shots, percent, signed, with_deviation
from taskres_cache.runs.results import Summary
from taskres_cache.system.files import replaced
from taskres_cache.system.text import markdown


def benchmark_tables(outcomes: Sequence[Outcome], title: str) -> list[Table]:
    """Return the tables that have rows: accuracy, gain, deviation, shifted sets, published results."""
    results = [outcome for outcome in outcomes if isinstance(outcome, DatasetResult)]
    shifted = [outcome for outcome in outcomes if isinstance(outcome, ShiftResult)]
    tables = []
    if results:
        tables += [_accuracy_table(results, title), _gain_table(results, title)]
    if results and len(results[0].summaries[0].seeds) > 1:
        tables.append(_deviation_table(results, title))
    if shifted:
        tables.append(_shifted_table(shifted, title))
    return [*tables, *_published_tables(results, shifted, title)]


def benchmark_records(outcomes: Sequence[Outcome]) -> Table:
    """Return all numbers in one table, one row per data set and shot count; other programs read it as CSV."""
    columns = ("dataset", "trained_on", "shots", "seeds", "zero_shot", "val", "test_mean", "test_std", "gain")
    rows = []
    for outcome in outcomes:
        if isinstance(outcome, DatasetResult):
            rows += [_record(outcome.name, outcome.name, row, row.mean_val_accuracy) for row in outcome.summaries]
        elif isinstance(outcome, ShiftResult):
            rows.append(_record(outcome.name, SHIFT_SOURCE, outcome, None))
    return Table("benchmark", columns, tuple(rows), left=2)


def benchmark_markdown(outcomes: Sequence[Outcome], title: str) -> str:
    """Return the tables, weights and versions, notes, and the data sets left out, in Markdown."""
    results = [outcome for outcome in outcomes if isinstance(outcome, DatasetResult)]
    metrics = [run.metrics for result in results for run in result.runs]
    versions = ", ".join(f"{library} {number}" for library, number in metrics[0].versions.items()) if metrics else ""
    weights = f"Weights {metrics[0].weights_sha256[:16]}, {versions}.\n" if metrics else ""
    notes = [f"- {markdown(f'{result.name}: {note}')}" for result in results for note in result.notes]
    left_out = [
        f"- {markdown(f'{outcome.name}: {outcome.reason}')}" for outcome in outcomes if isinstance(outcome, LeftOut)
    ]
    tables = (*benchmark_tables(outcomes, title), *method_tables(outcomes))
    parts = [f"# {markdown(title)}\n", weights, *(table.as_markdown() for table in tables)]
    for heading, lines in (("Notes", notes), ("Left out", left_out)):
        parts += ["\n".join([f"## {heading}", "", *lines]) + "\n"] if lines else []
    return "\n".join(part for part in parts if part)


def write_benchmark(outcomes: Sequence[Outcome], title: str, folder: Path) -> list[Path]:
    """Write `benchmark.md` and `benchmark.csv` and return their paths; raises StorageError if that fails."""
    contents = {
        "benchmark.md": benchmark_markdown(outcomes, title),
        "benchmark.csv": benchmark_records(outcomes).as_csv(),
    }
    if method_tables(outcomes):
        contents["benchmark-methods.csv"] = method_records(outcomes).as_csv()
    for name, content in contents.items():
        with replaced(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return [folder / name for name in contents]


def _record(name: str, trained_on: str, row: Summary | ShiftResult, val: float | None) -> tuple[str, ...]:
    seeds = " ".join(map(str, row.seeds))
    numbers = (row.zero_shot_accuracy, val, row.mean_test_accuracy, row.std_test_accuracy, row.gain)
    return (
        name,
        trained_on,
        shots_text(row.shots),
        seeds,
        *("" if number is None else f"{number:.4f}" for number in numbers),
    )


def _accuracy_table(results: Sequence[DatasetResult], title: str) -> Table:
    """Return the mean over seeds per data set and shot count, with zero-shot, and the average over data sets."""
    zero_shots = [outcome.summaries[0].zero_shot_accuracy or 0.0 for outcome in results]
    rows = _rows_over_shots(results, lambda row: row.mean_test_accuracy, percent)
    with_zero_shot = [
        (name, percent(zero_shot), *cells)
        for (name, *cells), zero_shot in zip(rows, [*zero_shots, statistics.mean(zero_shots)], strict=True)
    ]
    columns = ("data set", "zero-shot", *_shot_columns(results))
    return Table(f"{title}: test accuracy in %, mean over seeds", columns, tuple(with_zero_shot))


def _gain_table(results: Sequence[DatasetResult], title: str) -> Table:
    rows = _rows_over_shots(results, lambda row: row.gain or 0.0, signed)
    return Table(f"{title}: gain over zero-shot in points", ("data set", *_shot_columns(results)), tuple(rows))


def _deviation_table(results: Sequence[DatasetResult], title: str) -> Table:
    rows = _rows_over_shots(results, lambda row: row.std_test_accuracy or 0.0, percent)
    heading = f"{title}: standard deviation over seeds {' '.join(map(str, results[0].summaries[0].seeds))}"
    return Table(heading, ("data set", *_shot_columns(results)), tuple(rows))


def _rows_over_shots(
    results: Sequence[DatasetResult], number: Callable[[Summary], float], formatted: Callable[[float], str]
) -> list[tuple[str, ...]]:
    """Return one row per data set and one column per shot count, with a last row of averages."""
    numbers = [[number(row) for row in outcome.summaries] for outcome in results]
    averages = [statistics.mean(column) for column in zip(*numbers, strict=True)]
    names = [*(outcome.name for outcome in results), f"average of {len(results)}"]
    return [(name, *map(formatted, row)) for name, row in zip(names, [*numbers, averages], strict=True)]


def _shot_columns(results: Sequence[DatasetResult]) -> list[str]:
    return [in_shots(row.shots) for row in results[0].summaries]


def _published_tables(results: Sequence[DatasetResult], shifted: Sequence[ShiftResult], title: str) -> Iterator[Table]:
    """Yield ours next to published figures, and their sources, if there are any for the data sets and checkpoint."""
    if not results:
        return
    metrics = results[0].runs[0].metrics
    ours = {result.name: measured((*result.summaries, *result.others)) for result in results} | {
        one.name: _measured(one) for one in shifted
    }
    found = {name: compared(rows, name, metrics.backbone, metrics.pretrained) for name, rows in ours.items()}
    names = [name for name, rows in found.items() for _ in rows]
    everything = [one for rows in found.values() for one in rows]
    table = compared_table(everything, names)
    if table is not None:
        yield replace(table, title=f"{title}: next to published results")
        sources = sources_table(figure for one in everything for figure in one.figures)
        yield replace(sources, title=f"{title}: sources of published results")


def _measured(shift: ShiftResult) -> list[Measured]:
    zero_shot = Measured("zero-shot", 0, shift.zero_shot_accuracy, None)
    return [zero_shot, Measured("taskres-regular", shift.shots, shift.mean_test_accuracy, shift.std_test_accuracy)]


def _shifted_table(shifted: Sequence[ShiftResult], title: str) -> Table:
    rows = [
        (
            row.name,
            percent(row.zero_shot_accuracy),
            with_deviation(row.mean_test_accuracy, row.std_test_accuracy),
            signed(row.gain),
        )
        for row in shifted
    ]
    zero_shot = statistics.mean(row.zero_shot_accuracy for row in shifted)
    test = statistics.mean(row.mean_test_accuracy for row in shifted)
    gain = statistics.mean(row.gain for row in shifted)
    rows.append((f"average of {len(shifted)}", percent(zero_shot), percent(test), signed(gain)))
    shots = in_shots(shifted[0].shots)
    heading = f"{title}: classifiers fitted on {SHIFT_SOURCE}, {shots}, on shifted test sets, in %"
    return Table(heading, ("data set", "zero-shot", "test", "gain"), tuple(rows))
